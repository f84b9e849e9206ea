"""How the built-in pipelines are trained."""
