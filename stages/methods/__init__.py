"""One file per published method: a recipe, which is what a method *is*."""
