"""From bundle to running graph."""
