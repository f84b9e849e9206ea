"""The run: configuration, order, resume decisions, command line, reports."""
