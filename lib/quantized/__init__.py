"""What a quantized model is made of: grids, codes, and the layers that hold them."""
