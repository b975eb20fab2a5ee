"""Fixtures, tiny components and planted faults, for tests and benchmarks."""
