"""Hostile trials: damaged files, kills, races, and whatever decides on a result without being asked."""
