"""specx.engine"""
