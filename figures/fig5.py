"""Figure 5: ToMeSD, ToMA and ToPi beside the full context; `topi figure fig5`."""

from topi.bench.cli.main import script

script(__file__)
