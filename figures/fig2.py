"""Figure 2: relevance of single reference tokens over the steps; from `topi probe`."""

import argparse
from pathlib import Path

from topi.report.attention_figures import build_attention

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", type=Path, default=Path("results"), help="default: results")
    parser.add_argument("--out", type=Path, default=Path("report/figures"))
    options = parser.parse_args()
    for path in build_attention(options.store, options.out, 2):
        print(path)
