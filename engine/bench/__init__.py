"""specx.engine.bench.run"""
