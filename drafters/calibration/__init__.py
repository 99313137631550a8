"""specx.drafters.calibration.free"""
