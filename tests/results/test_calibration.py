"""The JSON of a calibration: round trip, and what is refused."""

import json

import pytest

from topi.errors import ToPiError
from topi.results.calibration import (
    Calibration,
    Curves,
    Stability,
    read_calibration,
    write_calibration,
)

CURVES = Curves(2, (1, 2), (0.1, 0.4, 0.3), (0.3, 0.2))
CALIBRATION = Calibration(
    overall=CURVES,
    by_category={"local_edit": CURVES},
    stability=Stability(100, 0, 0.97, (0.03, 1.0, 0.97)),
    samples=({"sample": "s", "by_layer": [0.1, 0.4, 0.3], "by_step": [0.3, 0.2]},),
    origin={"model": "m", "weights": "abc"},
)


@pytest.fixture
def path(tmp_path):
    write_calibration(tmp_path / "c.json", CALIBRATION)
    return tmp_path / "c.json"


def test_round_trip(path):
    assert read_calibration(path) == CALIBRATION
    content = json.loads(path.read_text())
    assert (content["schema"], content["layers"]) == (1, [1, 2])
    assert [p.name for p in path.parent.iterdir()] == ["c.json"]


def test_layers_are_for_the_weights_they_were_measured_on(path):
    calibration = read_calibration(path)
    assert calibration.layers_for("abc") == (1, 2)
    with pytest.raises(ToPiError, match=r"weights abc.* model has xyz: run `topi calibrate`"):
        calibration.layers_for("xyz")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c | {"schema": 2}, "schema 1 .it says 2"),
        (lambda c: [c], "schema 1 .it says None"),
        (lambda c: {k: v for k, v in c.items() if k != "stability"}, "damaged .*stability"),
        (lambda c: c | {"overall": {"samples": 1}}, "damaged"),
        (lambda c: c | {"layers": [0, 1]}, "two different sets"),
    ],
)
def test_another_or_a_damaged_file_is_refused(path, change, words):
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(ToPiError, match=words):
        read_calibration(path)


def test_no_file_and_no_json(path):
    with pytest.raises(ToPiError, match=r"No such file.*topi calibrate"):
        read_calibration(path.with_name("none.json"))
    path.write_text("{")
    with pytest.raises(ToPiError, match="is not JSON"):
        read_calibration(path)
