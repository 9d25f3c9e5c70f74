"""Find problems with a run or a dataset."""
