"""Figure 2: relevance of single reference tokens over the steps; `topi figure fig2`."""

from topi.bench.cli.main import script

script(__file__)
