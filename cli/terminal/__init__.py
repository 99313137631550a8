"""specx.cli.terminal"""
