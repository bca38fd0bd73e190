"""Integer networks: the graph as data, its bit-exact executor, its file, and the proof that an exported file computes the same."""
