"""Table 7: what scoring and selection take beside the model; `topi figure table7`."""

from topi.bench.cli.main import script

script(__file__)
