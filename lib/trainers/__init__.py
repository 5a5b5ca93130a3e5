"""Training: one loop over the Hugging Face `Trainer`, losses of one signature, and the choice of trained weights."""
