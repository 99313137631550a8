"""specx.cli"""
