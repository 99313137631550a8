"""specx.engine.learned.knowledge"""
