"""One file per format that a quantized folder can be turned into; `export(source, out)` writes it or says why not."""
