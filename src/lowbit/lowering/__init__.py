"""A trained network becomes an integer graph.

Its operations traced, quantizers placed, batch-norm folded, nodes converted.
"""
