"""specx.engine.setup"""
