"""Measure and tune throughput and latency."""
