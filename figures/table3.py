"""Table 3: what scores the tokens; `topi figure table3`."""

from topi.bench.cli.main import script

script(__file__)
