"""What `scripts/benchmark serve` and `scripts/benchmark growth` are made of."""
