"""Making drafters from what is on this machine."""
