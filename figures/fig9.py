"""Figure 9: several references; `topi figure fig9`."""

from topi.bench.cli.main import script

script(__file__)
