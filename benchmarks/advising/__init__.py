"""The parts of benchmarks/advise.py."""
