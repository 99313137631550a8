"""specx.backends.llama.model"""
