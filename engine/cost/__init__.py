"""specx.engine.cost"""
