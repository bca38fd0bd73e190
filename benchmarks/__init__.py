"""Benchmarks: `python -m benchmarks NAME` prints a table of ratios and writes CSV and a plot (docs/performance.md)."""
