"""Ratios, measured side by side in one run: ``python -m benchmarks [start] [1000] [10000] [100000] [240]``."""
