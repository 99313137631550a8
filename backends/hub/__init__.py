"""specx.backends.hub"""
