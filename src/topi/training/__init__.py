"""Training of the stand-in editors on MiniEdit, with Lightning: `python -m topi.training --help`."""
