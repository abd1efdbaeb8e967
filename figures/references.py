"""Quality and speed over the number of references: `topi figure references`."""

from topi.bench.cli.main import script

script(__file__)
