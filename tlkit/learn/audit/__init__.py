"""Mistakes in a set of images: duplicates, leaks, wrong labels, imbalance, shortcuts."""
