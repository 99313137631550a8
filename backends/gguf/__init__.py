"""specx.backends.gguf"""
