"""Predict photos and explain the predictions."""
