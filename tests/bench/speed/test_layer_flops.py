"""Table 6, corrected: what is committed is what the code counts."""

import json
from pathlib import Path

from topi.bench.speed.layer_flops import count

COUNTED = Path(__file__).resolve().parents[3] / "experiments" / "table6" / "counted.json"


def test_the_committed_counts():
    assert count() == json.loads(COUNTED.read_text())["layers"]


def test_a_single_stream_layer_by_hand():
    """24 d^2 a token and 4 d a pair of query and key, at d = 3072 and with half of C dropped."""
    n, d = 512 + 4096 + 2048, 3072
    found = count()["Flux Single"]["topi"]
    assert found["attention"] == 4 * n * n * d
    assert found["image"] == 24 * n * d * d
