"""The mathematics: tensors and plain values in, tensors and plain values out. Imports torch alone; see README.md."""
