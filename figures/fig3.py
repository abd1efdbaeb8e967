"""Figure 3: attention to references by step and task; `topi figure fig3`."""

from topi.bench.cli.main import script

script(__file__)
