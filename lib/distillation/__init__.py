"""Distillation to few bits: what the original answers, kept as data for a student with few bits."""
