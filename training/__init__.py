"""Hooks on a module while it trains: what its layers put out, and what gradients arrive at them."""
