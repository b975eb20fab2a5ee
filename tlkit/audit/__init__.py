"""Dataset audit: duplicates, leakage, label errors and shortcuts."""
