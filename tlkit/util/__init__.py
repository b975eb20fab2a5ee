"""Shared helpers: files, text, statistics, threads, resources."""
