"""Evaluation: a task's requests go to an engine, its answers are scored, and both are kept sample by sample."""
