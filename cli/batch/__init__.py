"""`specx batch`."""
