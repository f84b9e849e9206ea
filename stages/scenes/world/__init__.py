"""The built-in worlds: what can be requested, how it is rendered, and how pictures are scored. Knows no model."""
