"""Alignment: answers that a model writes while it learns from rewards, what preferences made of it, and their study."""
