"""Networks, the Classifier that wraps them, and the layer table."""
