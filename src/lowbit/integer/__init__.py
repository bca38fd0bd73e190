"""Integer networks: the graph as data, its bit-exact executor, its file, and its costs."""
