"""specx.kernels.reference"""
