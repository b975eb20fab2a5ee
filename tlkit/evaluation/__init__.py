"""Measure an exported model on labelled images."""
