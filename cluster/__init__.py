"""Where work runs: this process or Ray. Cannot name a stage, and imports nothing else of this package."""
