"""specx.engine.text.stream"""
