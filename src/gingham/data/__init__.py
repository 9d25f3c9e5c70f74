"""Datasets: load, decode, split, sample and augment."""
