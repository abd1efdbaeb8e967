"""Figure 6: ToPi with TeaCache; cells of `experiment=fig6`."""

from topi.bench.report.draw import draw

if __name__ == "__main__":
    draw(__doc__, figures=("fig6",))
