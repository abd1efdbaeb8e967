"""What temporal caches must know of a model: measured right, written, read, refused."""

import copy
import json
import re
from dataclasses import replace
from math import inf, nan
from random import Random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir

from topi import MagCache, TeaCache
from topi.bench.cli import main as cli
from topi.bench.config.schema import conf_folder, read_config
from topi.bench.editors import editor, standin
from topi.bench.results.cache_fit_file import CacheFit, read_cache_fit, write_cache_fit
from topi.bench.runs.assemble import build_method, open_editor
from topi.bench.runs.identify import label_of
from topi.bench.studies import cache_fit
from topi.bench.studies.cache_fit import fit_polynomial, watch_output
from topi.errors import ToPiError
from topi.methods.probes.cache_probe import CacheProbe
from topi.models import adapter_for
from topi.models.tiny import tiny_flux

FEW = ("model.steps=4", "model.height=64", "model.width=64")


def config_of(*overrides):
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        return read_config(compose("config", list(overrides)))


def test_a_quartic_is_found_again():
    quartic = [-40.0, 30.0, -5.0, 2.0, 0.1]
    inputs = [0.01, 0.05, 0.1, 0.2, 0.25, 0.3]
    fit = fit_polynomial(inputs, np.polyval(quartic, inputs))
    assert fit["coefficients"] == pytest.approx(quartic, rel=1e-6)
    assert fit["ceiling"] == 0.3


def test_too_few_points():
    with pytest.raises(ToPiError, match="needs 5 different points, but there are 4"):
        fit_polynomial([0.1, 0.1, 0.2, 0.3, 0.4], [1] * 5)


@pytest.mark.parametrize(("kind", "branches"), [("flux", ["cond"]), ("qwen", ["cond", "uncond"])])
def test_the_probe_sees_what_the_model_computes(tiny, kind, branches):
    """Against hooks of our own; the model runs as it would without."""
    pipe, call = tiny(kind)
    blocks, n = adapter_for(pipe).blocks, len(branches)
    normed, starts, ends, outputs = [], [], [], []
    hooks = [
        blocks[0].attn.register_forward_pre_hook(
            lambda m, args, kwargs: normed.append(kwargs["hidden_states"]), with_kwargs=True
        ),
        blocks[0].register_forward_pre_hook(
            lambda m, args, kwargs: starts.append(kwargs["hidden_states"][:, :64]), with_kwargs=True
        ),
        blocks[-1].register_forward_hook(lambda m, args, out: ends.append(out[1][:, :64])),
        pipe.transformer.register_forward_hook(lambda m, args, out: outputs.append(out[0][:, :64])),
    ]
    plain = pipe(**call(steps=3)).images
    for hook in hooks:
        hook.remove()
    fake = SimpleNamespace(
        name="tiny",
        pipe=pipe,
        transformer=pipe.transformer,
        edit=lambda sample, seed: pipe(**call(steps=3)),
    )
    probe = CacheProbe()
    for _ in range(2):  # a second edit starts anew
        watch_output(fake, SimpleNamespace(id="a"), 0, probe)
    assert torch.equal(pipe(**call(steps=3)).images, plain)
    assert not pipe.transformer._forward_hooks

    def changes(values):
        pairs = zip(values, values[n:], strict=False)
        return [float((b - a).abs().mean() / a.abs().mean()) for a, b in pairs]

    residuals = [(end - start).norm(dim=-1) for start, end in zip(starts, ends, strict=True)]
    ratios = [float((b / a).mean()) for a, b in zip(residuals, residuals[n:], strict=False)]
    for number, branch in enumerate(branches):
        assert probe.inputs[branch] == pytest.approx(changes(normed)[number::n], rel=1e-4)
        assert probe.outputs[branch] == pytest.approx(changes(outputs)[number::n], rel=1e-4)
        assert probe.ratios[branch] == pytest.approx(ratios[number::n], rel=1e-4)
        assert len(probe.inputs[branch]) == 2


@pytest.fixture
def fitted(tmp_path, monkeypatch, capsys, edits):
    """The fit that `topi fit-cache` writes for a tiny model; it was killed at the second sample."""
    monkeypatch.chdir(tmp_path)
    command = ["fit-cache", "model=tiny_flux", "data.count=2", *FEW]

    def killed(editor, sample, *rest):
        if edits:
            raise KeyboardInterrupt
        watch_output(editor, sample, *rest)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(cache_fit, "watch_output", killed)
        cli.main(command)
    assert cli.main(command) == 0
    assert len(edits) == 2 == len(set(edits))
    out = capsys.readouterr().out
    (path,) = (tmp_path / "results" / "cache_fit").glob("tiny_flux-*.json")
    assert str(path.relative_to(tmp_path)) in out and "6 points" in out
    return path


def test_from_the_command_line_to_a_method(fitted, tmp_path):
    fit = read_cache_fit(fitted)
    assert len(fit.caches["teacache"]["coefficients"]) == 5
    assert fit.caches["teacache"]["threshold"] > 0
    ratios = fit.caches["magcache"]["ratios"]
    assert len(ratios) == 4 and ratios[0] == 1
    assert 0 < fit.quality["teacache"]["r2"] <= 1
    assert (fit.origin["model"], fit.origin["weights"]) == ("tiny_flux", "random-kontext")
    assert str(tmp_path) not in fitted.read_text()

    given = ("model=tiny_flux", "method=full", f"cache.fit={fitted}")
    config = config_of(*given, "cache=teacache")
    tiny = open_editor(config)
    method = build_method(config, adapter_for(tiny.pipe).facts, tiny)
    assert method == TeaCache(**fit.caches["teacache"])
    label = label_of(config, method)
    assert re.fullmatch(rf"full cache=teacache cache\.fit={fitted.stem}@[0-9a-f]{{6}}", label)
    other = tmp_path / fitted.name  # another file of this name
    other.write_text(fitted.read_text() + "\n")
    config.cache["fit"] = str(other)
    assert label_of(config, method) != label
    config = config_of(*given, "cache=magcache")
    assert list(build_method(config, adapter_for(tiny.pipe).facts, tiny).ratios) == ratios

    # what is given goes before a file, a file before what is known of the model
    config = config_of(*given, "cache=teacache", "cache.coefficients=[1,0]")
    method = build_method(config, adapter_for(tiny.pipe).facts, tiny)
    assert (method.coefficients, method.ceiling) == ((1, 0), float("inf"))
    assert method.threshold is None  # that of another polynomial says nothing
    config = config_of("model=tiny_flux", "method=full", "cache=teacache")
    method = build_method(config, adapter_for(tiny.pipe).facts, tiny)
    assert method.coefficients == tuple(config.model["temporal_cache"]["teacache"]["coefficients"])


def test_a_fit_of_other_weights_is_refused(tmp_path):
    path = tmp_path / "fit.json"
    write_cache_fit(
        path, CacheFit({"magcache": {"ratios": [1.0]}}, {}, {"model": "m", "weights": "others"})
    )
    config = config_of("model=tiny_flux", "cache=teacache", f"cache.fit={path}")
    tiny = open_editor(config)
    with pytest.raises(ToPiError, match="of the weights others, but the model has random-kontext"):
        build_method(config, adapter_for(tiny.pipe).facts, tiny)


TEACACHE = {"coefficients": [1.0, 0.5], "ceiling": 0.3, "threshold": 0.2}
VALID = {"teacache": TEACACHE, "magcache": {"ratios": [1.0, 0.9]}}


def as_written(caches):
    return json.dumps({"schema": 1, "caches": caches, "quality": {}, "origin": {"weights": "w"}})


def test_files_that_are_no_fit(tmp_path):
    path = tmp_path / "fit.json"
    for content in ("{", "[]", '{"schema": 0}', as_written({"taylorseer": {}}), "\0"):
        path.write_text(content)
        with pytest.raises(ToPiError, match=r"fit\.json is not valid.*topi fit-cache"):
            read_cache_fit(path)


def test_any_wrong_value_in_a_fit_is_refused_with_its_field(tmp_path):
    """By the reader of a file, and by the methods where it comes from elsewhere."""
    random, path = Random(0), tmp_path / "fit.json"
    wrong = (nan, inf, -inf, None, "1", "nan", {}, {"a": 1}, True, [[1.0]])
    methods = {"teacache": TeaCache, "magcache": MagCache}
    facts = adapter_for(tiny_flux(dual=1, single=1)[0]).facts
    path.write_text(as_written(VALID))
    assert read_cache_fit(path).caches == VALID
    for _ in range(80):
        caches = copy.deepcopy(VALID)
        cache = random.choice(list(caches))
        field, value = random.choice(list(caches[cache])), random.choice(wrong)
        named = field
        if isinstance(caches[cache][field], list) and random.random() < 0.7:
            at = random.randrange(2)
            caches[cache][field][at], named = value, f"{field}.{at}"
        else:
            caches[cache][field] = value
        path.write_text(as_written(caches))
        with pytest.raises(ToPiError, match=rf"fit\.json .*field caches\.{cache}\.{named}"):
            read_cache_fit(path)
        if named == field and value in (None, inf):
            continue  # the model's own, and no limit
        with pytest.raises(ToPiError, match=field):
            methods[cache](**caches[cache])
        with pytest.raises(ToPiError, match=field):
            methods[cache]().prepare(replace(facts, temporal_cache=caches))


def test_only_standins_ship(capsys):
    assert cli.main(["fit-cache", "model=tiny_flux", "--ship"]) == 1
    assert "--ship needs a stand-in" in capsys.readouterr().err


def test_a_shipped_fit_counts_for_its_own_weights_only(tmp_path, monkeypatch):
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"new")
    pipe, _ = tiny_flux(dual=1, single=1)
    monkeypatch.setattr(standin, "load_standin", lambda *_: pipe)
    monkeypatch.setattr(standin, "weights_file", lambda *_: weights)
    about = editor.ModelConfig("x", "kontext", "standin", 4, 64, 64, device="cpu")
    for of, known in ((editor.file_hash(weights)[:16], True), ("old", False)):
        fit = {"weights": of, "magcache": {"ratios": [1.0]}}
        pipe.transformer.register_to_config(temporal_cache=fit)
        facts = adapter_for(editor.load_editor(about).pipe).facts
        assert ("magcache" in facts.temporal_cache) == known
