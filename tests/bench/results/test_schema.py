from dataclasses import dataclass

import pytest
from pydantic import FiniteFloat

from topi.bench.results.validation import parse
from topi.errors import ToPiError


@dataclass
class Fit:
    layers: tuple[int, ...]
    ratios: tuple[FiniteFloat, ...]


def test_valid_content_becomes_an_object():
    fit = parse('{"layers": [1, 2], "ratios": [0.5]}', Fit, "fit.json", "fit again")
    assert fit == Fit((1, 2), (0.5,))


@pytest.mark.parametrize(
    ("content", "field"),
    [
        ('{"layers": [true], "ratios": []}', "layers.0"),
        ('{"layers": ["1"], "ratios": []}', "layers.0"),
        ('{"layers": [1], "ratios": [NaN]}', "ratios.0"),
        ('{"layers": [1], "ratios": [1e999]}', "ratios.0"),
        ('{"layers": [1], "ratios": null}', "ratios"),
        ('{"layers": [1]}', "ratios"),
        ("[1", "JSON"),
        ("[" * 100_000, "JSON"),
    ],
)
def test_an_error_names_file_field_and_remedy(content, field):
    with pytest.raises(ToPiError, match=rf"fit\.json.*{field}.*fit again"):
        parse(content, Fit, "fit.json", "fit again")
