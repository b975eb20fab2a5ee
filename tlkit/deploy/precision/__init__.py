"""Precision in the graph: int8 by calibration, what each layer loses by it, and the ladder of precisions."""
