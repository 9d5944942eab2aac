"""Benchmarks of annotating large corpora."""
