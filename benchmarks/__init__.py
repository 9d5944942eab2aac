"""Benchmarks. Run each as a module from the root of the repository: python -m benchmarks.ember.quality."""
