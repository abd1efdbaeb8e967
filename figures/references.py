"""Quality and speed over the number of references; `experiment=references`."""

from topi.bench.report.draw import draw

if __name__ == "__main__":
    draw(__doc__, figures=("references",), tables=("references",))
