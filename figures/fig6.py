"""Figure 6: ToPi with TeaCache; `topi figure fig6`."""

from topi.bench.cli.main import script

script(__file__)
