"""Metrics, evaluation on a split, calibration."""
