"""Studies of one model: calibration, attention probes, cache fits, searches."""
