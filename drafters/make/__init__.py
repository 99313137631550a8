"""Making of drafters: files that are written once, beside the models they came from."""
