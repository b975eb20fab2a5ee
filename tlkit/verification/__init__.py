"""Prove that what is deployed is what was trained."""
