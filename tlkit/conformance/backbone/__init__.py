"""Checks of a backbone."""
