"""The picture at the top of the README; cells of `experiment=fig5`."""

from topi.bench.report.draw import draw

if __name__ == "__main__":
    draw(__doc__, figures=("overview",))
