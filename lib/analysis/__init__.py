"""What quantization does inside a model: errors of layers, drift of inputs, outliers, incoherence."""
