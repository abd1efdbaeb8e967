"""The JSON of a calibration: round trip, and what is refused."""

import copy
import json
import os
from dataclasses import asdict
from pathlib import Path
from random import Random

import pytest

import topi
from topi.bench.results.calibration_file import (
    Calibration,
    Curves,
    Stability,
    read_calibration,
    write_calibration,
)
from topi.errors import ToPiError

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


def set_in(content, field, value):
    *outer, last = (int(part) if part.isdigit() else part for part in field.split("."))
    for part in outer:
        content = content[part]
    content[last] = value


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("schema", 2),
        ("schema", True),
        ("overall", {"samples": 1}),
        ("overall.layers", [True]),
        ("overall.layers", [2, 2]),
        ("overall.layers", [2, 1]),
        ("overall.layers", []),
        ("overall.layers", ["1"]),
        ("overall.layers", [-1]),
        ("overall", {**asdict(CURVES), "layers": [3]}),
        ("overall.by_layer.1", float("nan")),
        ("overall.by_layer.1", 1.5),
        ("overall.by_step", None),
        ("by_category.local_edit.samples", 1.5),
        ("stability.same_set", "0.97"),
        ("stability.frequency.0", {}),
        ("samples.0.by_layer.2", float("inf")),
        ("samples.0.sample", 1),
        ("origin.weights", ["abc"]),
        ("layers", [True]),
    ],
)
def test_an_invalid_field_is_named(path, field, value):
    content = json.loads(path.read_text())
    set_in(content, field, value)
    path.write_text(json.dumps(content))
    with pytest.raises(ToPiError, match=rf"c.json is not valid: field {field}.*topi calibrate"):
        read_calibration(path)


def leaves(content, field=()):
    if isinstance(content, dict | list) and content:
        pairs = content.items() if isinstance(content, dict) else enumerate(content)
        return [leaf for key, each in pairs for leaf in leaves(each, (*field, str(key)))]
    return [".".join(field)]


def test_no_wrong_value_gets_through_anywhere(path):
    content, random = json.loads(path.read_text()), Random(0)
    wrong = (
        float("nan"),
        float("inf"),
        -1,
        10**30,
        0.5,
        True,
        None,
        "",
        "x",
        [],
        [[]],
        {},
        {"a": 1},
    )
    refused = 0
    for _ in range(200):
        changed = copy.deepcopy(content)
        set_in(changed, random.choice(leaves(content)), random.choice(wrong))
        path.write_text(json.dumps(changed))
        try:
            found = read_calibration(path)
        except ToPiError as error:
            refused += 1
            assert "c.json" in str(error) and "topi calibrate" in str(error)
            continue
        for curves in (found.overall, *found.by_category.values()):
            assert all(type(layer) is int for layer in curves.layers)
            assert set(curves.layers) < set(range(len(curves.by_layer)))
            assert all(0 <= share <= 1 for share in (*curves.by_layer, *curves.by_step))
        assert type(found.origin["weights"]) is str
    assert 150 < refused < 200


def test_parts_that_are_missing_or_contradict_each_other(path):
    content = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in content.items() if k != "stability"}))
    with pytest.raises(ToPiError, match="field stability"):
        read_calibration(path)
    path.write_text(json.dumps(content | {"layers": [0, 1]}))
    with pytest.raises(ToPiError, match="two different sets"):
        read_calibration(path)


def test_no_file_and_no_json(path, tmp_path):
    with pytest.raises(ToPiError, match=r"No such file.*topi calibrate"):
        read_calibration(path.with_name("none.json"))
    for content in (b"{", b"[]", b"\xff", b"[" * 100_000):
        path.write_bytes(content)
        with pytest.raises(ToPiError, match=r"c\.json .*topi calibrate"):
            read_calibration(path)
    os.mkfifo(tmp_path / "pipe")
    for place in (tmp_path / "pipe", tmp_path, "/dev/zero"):
        with pytest.raises(ToPiError, match=r"not a regular file|Is a directory"):
            read_calibration(place)


def test_shipped_calibrations_are_valid():
    shipped = sorted(Path(topi.__file__).parent.glob("bench/editors/weights/*/calibration*.json"))
    assert len(shipped) >= 3
    for file in shipped:
        assert read_calibration(file).layers
