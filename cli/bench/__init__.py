"""specx.cli.bench.command"""
