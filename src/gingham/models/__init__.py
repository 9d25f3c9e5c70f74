"""Networks, the classifier around them, and the layer table."""
