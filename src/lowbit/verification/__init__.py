"""The proof: an exported file and the trained network against the integer reference, code by code."""
