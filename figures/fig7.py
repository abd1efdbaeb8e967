"""Figure 7: the tokens kept at each anchor; `topi figure fig7`."""

from topi.bench.cli.main import script

script(__file__)
