"""Evaluate: the quantized model beside full precision."""
