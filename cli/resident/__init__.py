"""A model that stays loaded: where its server is found, how it is asked, and how it is started and stopped.

What asks (`place`, `client`, `remote`) is imported by commands that must start within a moment, so none of it
may import NumPy or anything that does.
"""
