"""Text encoders: their weights to 8 or 4 bits, and what that costs."""
