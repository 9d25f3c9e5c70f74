"""Export a model, and serve it over HTTP."""
