"""Figure 1: attention to references by layer; `topi figure fig1`."""

from topi.bench.cli.main import script

script(__file__)
