"""What a stage is made of."""
