"""specx.drafters"""
