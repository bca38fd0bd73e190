"""Layers with quantizers, the rules that say which layer gets which, and where quantizers stand in a network."""
