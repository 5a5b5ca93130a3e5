"""Vocabularies: which entries a corpus uses, and models without those that it does not."""
