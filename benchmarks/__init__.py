"""Benchmarks: each a command that prints a table of ratios and writes CSV (`python -m benchmarks.step --help`)."""
