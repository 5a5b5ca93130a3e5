"""Fine-tuning of models, plain and compressed: which weights learn, and how what was learned gets into the model."""
