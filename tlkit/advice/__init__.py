"""Recommend a backbone, cut, strategy and head, with the evidence."""
