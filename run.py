"""One cell of an experiment, or with -m a sweep of them; the same as `topi run`."""

import sys

from topi.bench.runs.launch import launch

if __name__ == "__main__":
    sys.exit(launch())
