"""Quality at an equal number of kept tokens: `topi figure equal_count`."""

from topi.bench.cli.main import script

script(__file__)
