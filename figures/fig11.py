"""Figure 11: the mask renewed or drawn once; `topi figure fig11`."""

from topi.bench.cli.main import script

script(__file__)
