"""Table 1, and its curves of quality over speed: `topi figure table1`."""

from topi.bench.cli.main import script

script(__file__)
