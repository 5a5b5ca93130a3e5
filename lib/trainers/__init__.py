"""Training: one loop over the Hugging Face `Trainer`, losses of one signature, and what of a model is trained."""
