"""Quality with as many tokens kept: `topi figure equal_count`."""

from topi.bench.cli.main import script

script(__file__)
