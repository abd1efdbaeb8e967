"""Training of the stand-ins on MiniEdit, with Lightning: `python -m topi.training --help`."""
