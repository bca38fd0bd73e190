"""Experiments too long for the suite: each a command whose table is committed under docs/results/."""
