"""One-line faults, and whether the fast tests notice them: `python -m tests.bench.mutants`."""
