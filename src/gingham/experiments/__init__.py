"""Trials over seeds, and comparisons between them."""
