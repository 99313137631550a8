"""specx.cli.options.read"""
