"""Serve bundles over the Open Inference Protocol, ready once their golden images are replayed."""
