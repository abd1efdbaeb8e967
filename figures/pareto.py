"""Quality over speed for every method and stack: `topi figure pareto`."""

from topi.bench.cli.main import script

script(__file__)
