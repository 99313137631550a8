"""`specx serve`: a model for other programs."""
