"""Recorded requests, run again on another archive: what it answers, and what its layers do."""
