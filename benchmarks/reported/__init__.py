"""Reports about other tools, each tried on tlkit; `benchmarks/strangers.py` tells how."""
