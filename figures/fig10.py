"""Figure 10: the threshold tau, in pictures and in numbers; `topi figure fig10`."""

from topi.bench.cli.main import script

script(__file__)
