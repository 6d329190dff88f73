"""Measurements that are run by hand: `scripts/benchmark NAME`."""
