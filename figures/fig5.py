"""Figure 5: ToMeSD, ToMA and ToPi beside the full context; cells of `experiment=fig5`."""

from topi.bench.report.draw import draw

if __name__ == "__main__":
    draw(__doc__, figures=("fig5",))
