"""specx.engine.report"""
