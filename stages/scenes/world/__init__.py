"""The built-in worlds: what can be asked for, how it is drawn, and how pictures are scored. No model is known here."""
