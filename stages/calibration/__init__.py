"""Capture, fisher and hessian: what the model does with calibration captions."""
