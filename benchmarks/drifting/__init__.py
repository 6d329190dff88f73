"""What `scripts/benchmark drift` is made of."""
