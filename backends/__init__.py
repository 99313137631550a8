"""specx.backends"""
