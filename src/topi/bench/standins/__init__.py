"""Training, model cards and studies of the stand-ins: `python -m topi.bench.standins --help`."""
