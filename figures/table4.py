"""Table 4: dropped tokens left out, or merged into kept ones; `topi figure table4`."""

from topi.bench.cli.main import script

script(__file__)
