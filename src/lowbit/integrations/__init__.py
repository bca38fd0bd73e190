"""lowbit within other libraries' training loops: a callback for each, in a module with the library's name."""
