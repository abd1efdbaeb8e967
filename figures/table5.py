"""Table 5: more on the layers; `topi figure table5`."""

from topi.bench.cli.main import script

script(__file__)
