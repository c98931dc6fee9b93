"""Which attention heads a classifier needs."""
