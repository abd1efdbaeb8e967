"""Figure 2: relevance of single reference tokens over the steps; from `topi probe`."""

from topi.bench.report.draw import draw

if __name__ == "__main__":
    draw(__doc__, figures=("fig2",))
