"""The picture at the top of the README: `topi figure overview`."""

from topi.bench.cli.main import script

script(__file__)
