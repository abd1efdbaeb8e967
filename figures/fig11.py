"""Figure 11: the mask renewed or drawn once; cells of `experiment=fig11`."""

from topi.bench.report.draw import draw

if __name__ == "__main__":
    draw(__doc__, figures=("fig11",))
