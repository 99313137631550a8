"""specx.backends.machine.machine"""
