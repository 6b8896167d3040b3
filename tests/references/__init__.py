"""Slow truths: float64, plain Python loops, written from the papers' pages and not from keel's code."""
