"""Show what a model gets right and wrong, and why, on exported graphs alone."""
