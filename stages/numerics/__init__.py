"""Tensors in, tensors or plain values out. Imports torch alone."""
