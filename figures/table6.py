"""Table 6: FLOPs of one layer; `topi figure table6`."""

from topi.bench.cli.main import script

script(__file__)
