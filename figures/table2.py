"""Table 2: from which layers the score is taken; `topi figure table2`."""

from topi.bench.cli.main import script

script(__file__)
