"""Where tasks run: in this process, or on Ray. Imports nothing else of this package and knows no stage."""
