"""Suggest which unlabelled images to label next, and why."""
