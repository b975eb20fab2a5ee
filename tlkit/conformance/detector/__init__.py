"""Checks of a detector."""
