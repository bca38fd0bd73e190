"""A trained network becomes an integer graph: its operations traced, quantizers placed, batch-norm folded, nodes converted."""
