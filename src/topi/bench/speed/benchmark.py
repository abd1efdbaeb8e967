"""`topi bench`: the settings, the lines and the run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from topi.bench.config.schema import Config, ConfigError, check_choice, read_config, sentence
from topi.bench.results.bench_run import BenchRun, bench_run
from topi.bench.results.keys import digest
from topi.bench.results.provenance import provenance
from topi.errors import ToPiError

if TYPE_CHECKING:
    from topi.bench.data import EditSample
    from topi.bench.editors.editor import Editor
    from topi.bench.speed.lines import Variant
    from topi.methods import Method
    from topi.models import ModelFacts

WEIGHTS = ("own", "random")
SCORING = ("chunked", "flash", "triton")
PERIOD = 10
"""Steps from anchor to anchor (section 5.1); a run of so many is one interval."""
LEAST_MERGED = 0.25
"""The least keep ratio of merging in windows of 2 x 2."""
GRAPH_TOKENS = 64
"""With CUDA graphs, which need few different lengths, methods keep a multiple of this."""
SCALED_DOWN = {"dtype": "float32", "front_layers": 1, "representative_layers": (1, 2, 3)}
SCALED_SIZE = 256  # pixels
SCALED_STEPS = 2 * PERIOD
"""Random weights on a machine without a GPU; `editors.random` has the rest. Two intervals, because
the first call of a run is an anchor that is not timed."""
READS = ("model", "seed", "store")


@dataclass
class BenchConfig:
    """The keys of `topi bench` beside those of `run.py`.

    Args:
        weights: "own": those of the model; "random": of its published size, drawn on the device.
        methods: of the registry; empty: all.
        keep: shares of tokens to keep.
        repeats: timed pairs of each line; `warmup` pairs of each are thrown away before.
        size: side of the picture in pixels; None: the model's.
        references: how many pictures of that size are the context; Kontext gets them side by side.
        steps: denoising steps, one in ten an anchor; None: the model's, 40 as published, or 20
            scaled down.
        compile: time with compiled blocks, full and methods alike; `backend` is torch.compile's.
        graphs: replay the compiled blocks as CUDA graphs, one for each length.
        round_to: methods that can round keep a multiple of so many tokens; None: 64 with graphs,
            else 1.
        trim_last: every method's last block computes target rows only (see `Method.__call__`).
        kernel: what sums attention weights at anchors: "chunked", "flash" or "triton"; None: the
            default of the device.
    """

    weights: str = "own"
    methods: list[str] = field(default_factory=list)
    keep: list[float] = field(default_factory=lambda: [0.2, 0.3, 0.5, 0.7])
    repeats: int = 3
    warmup: int = 1
    size: int | None = None
    references: int = 1
    steps: int | None = None
    compile: bool = False
    backend: str = "inductor"
    graphs: bool = False
    round_to: int | None = None
    trim_last: bool = False
    kernel: str | None = None

    @property
    def multiple(self) -> int:
        """What numbers of kept tokens are a multiple of."""
        return self.round_to or (GRAPH_TOKENS if self.graphs else 1)


def read_bench(overrides: Sequence[str]) -> tuple[BenchConfig, list[str]]:
    """The keys of `topi bench`, and the other overrides, which are for `conf/`.

    Raises:
        ConfigError: a value of the wrong type or out of range.
    """
    config, rest = own_keys(BenchConfig, overrides)
    check_choice("weights", config.weights, WEIGHTS)
    if config.kernel is not None:
        check_choice("kernel", config.kernel, SCORING)
    if config.graphs and not (config.compile and config.backend == "inductor"):
        raise ConfigError("graphs=true needs compile=true and backend=inductor.")
    least = {"repeats": 1, "warmup": 0, "references": 1, "steps": 1, "round_to": 1, "size": 32}
    check_least(config, least)
    check_shares(config.keep)
    return config, rest


def check_shares(keep: Sequence[float]) -> None:
    """Raise a ConfigError unless these are shares of tokens to keep."""
    for share in keep:
        if not 0 < share <= 1:
            raise ConfigError(f"keep={share} must be in (0, 1].")


def check_least(config: Any, least: Mapping[str, int]) -> None:
    """Raise a ConfigError for a field that is given and below its bound."""
    for name, bound in least.items():
        if (value := getattr(config, name)) is not None and value < bound:
            raise ConfigError(f"{name}={value} must be at least {bound}.")


def own_keys(schema: type, overrides: Sequence[str]) -> tuple[Any, list[str]]:
    """The overrides whose keys are fields of a dataclass, as one of its objects, and the others.

    Raises:
        ConfigError: a value of the wrong type.
    """
    names = {f.name for f in fields(schema)}
    own = [override for override in overrides if override.partition("=")[0] in names]
    try:
        given = OmegaConf.from_dotlist(own)
        config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), given))
    except OmegaConfBaseException as error:
        raise ConfigError(sentence(error)) from error
    return config, [override for override in overrides if override not in own]


def bench(overrides: Sequence[str]) -> BenchRun:
    """Measure. A run that was broken off starts anew and keeps the pairs that it has.

    A line that cannot run is left out, and the manifest says why.

    Raises:
        ToPiError: the configuration is impossible, another process does the same, or no line runs.
    """
    from topi.bench.runs import assemble
    from topi.bench.runs.cell import progress
    from topi.bench.runs.gpu import claim_gpu
    from topi.bench.runs.resume import alone
    from topi.bench.speed.lines import measure
    from topi.engine.attention import scored_by
    from topi.engine.compiling import compile
    from topi.models import adapter_for

    settings, rest = read_bench(overrides)
    config = model_of(settings, rest)
    assemble.check(config)
    claim_gpu(Path(config.store))
    editor = assemble.open_editor(config)
    if settings.compile:
        graphs = {"dynamic": False, "mode": "reduce-overhead"} if settings.graphs else {}
        compile(editor.pipe, backend=settings.backend, **graphs)
    variants = variants_of(settings, config, editor, adapter_for(editor.pipe).facts)
    content = conditions(settings, editor, variants)
    run = bench_run(config.store, f"{editor.name}-{digest(content)}")
    with alone(run.lock(), f"benchmark {run.key}"):
        run.start({**content, "key": run.key, **origin(editor)})
        sample = picture(settings.references, editor.config)
        pairs = len(variants) * settings.repeats
        title = f"{editor.name}: speed"
        with progress(title, pairs, 0) as advance, scored_by(content["kernel"]):
            rounds = settings.repeats, settings.warmup
            for row in measure(editor, sample, variants, config.seed, *rounds, run.refuse):
                run.add(row)
                ratio = row["total_full"] / row["total_method"]
                advance(f"{row['label']}: {ratio:.3f} of {row['total_full']:.2f} s")
    if not run.rows:
        why = " ".join(dict.fromkeys(run.manifest["refused"].values()))
        raise ToPiError(f"No line of {run.key} could be measured: {why}")
    return run


def conditions(
    settings: BenchConfig, editor: "Editor", variants: "Sequence[Variant]"
) -> dict[str, Any]:
    """All that the seconds depend on; the key of the benchmark is a hash of it."""
    import torch  # which a refusal need not wait for

    from topi.engine.attention import KERNEL

    device = editor.pipe.device.type
    return {
        "model": editor.name,
        "kind": editor.config.kind,
        "source": editor.config.source,
        "weights": editor.fingerprint(),
        "scaled_down": bool(editor.config.options.get("scaled_down")),
        "dtype": editor.config.dtype,
        "steps": editor.steps,
        "size": [editor.config.height, editor.config.width],
        "references": settings.references,
        "compiled": compiled_by(settings),
        "trim_last": settings.trim_last,
        "round_to": settings.multiple,
        "kernel": settings.kernel or KERNEL.get(device, "chunked"),
        "device": editor.device_name,
        "threads": torch.get_num_threads() if device == "cpu" else None,
        "lines": [variant.label for variant in variants],
    }


def model_of(settings: BenchConfig, overrides: Sequence[str]) -> Config:
    """The configuration with the model as it is to be measured.

    Random weights have the published size on a GPU; elsewhere they are scaled down, which the
    manifest says.
    """
    import torch

    from topi.bench.config.compose import compose_study

    config = compose_study("bench", overrides, READS)
    model, size, steps = config.model, settings.size, settings.steps
    if settings.weights == "random":
        scaled = not torch.cuda.is_available()
        model |= random_weights(scaled)
        if scaled:
            size, steps = size or SCALED_SIZE, steps or SCALED_STEPS
    if size is not None:
        model |= {"height": size, "width": size}
    if steps is not None:
        model["steps"] = steps
    return config


def random_weights(scaled_down: bool) -> dict[str, Any]:
    """The fields of a model that has random weights."""
    fields = {"source": "random", "offload": "none"}
    return fields | ({"options": {"scaled_down": True}, **SCALED_DOWN} if scaled_down else {})


def picture(references: int, model: Any) -> "EditSample":
    """A drawn sample at the model's size, with so many references of that size."""
    from topi.bench.data import EditSample, MiniEdit

    drawn = MiniEdit()[0]
    pictures = (drawn.references[0].resize((model.width, model.height)),) * references
    about = (drawn.category, drawn.task, drawn.instruction)
    return EditSample(f"drawn-{references}", *about, pictures, size=(model.height, model.width))


def variants_of(
    settings: BenchConfig, config: Config, editor: "Editor | None", facts: "ModelFacts"
) -> "list[Variant]":
    """The lines: hooks alone, the last block trimmed, then each method at each keep ratio.

    In a compiled model the first line is the full run without compilation.

    Raises:
        ConfigError: an unknown method.
    """
    from topi.bench.config.compose import composed
    from topi.bench.runs import assemble
    from topi.bench.speed.lines import HooksOnly, Variant, refused, uncompiled
    from topi.methods import METHODS
    from topi.methods.floors.full import Full

    names = settings.methods or [name for name in METHODS if name != "full"]
    for name in names:
        check_choice("methods", name, METHODS)
    lines = [
        Variant("hooks only", "hooks", HooksOnly()),
        Variant("full, last block trimmed", "full", partial(Full(), trim_last=True)),
    ]
    if settings.compile:
        lines.insert(0, Variant("full, not compiled", "full", uncompiled))
    for name in names:
        cls = METHODS[name]
        known = {f.name for f in fields(cls)} - cls.variants[name].keys()
        points = [kept_share(cls, keep) for keep in settings.keep]
        for keep, params in dict(points).items():
            own = {"update_every": PERIOD, "first_anchor": 0, "round_to": settings.multiple}
            own = {k: v for k, v in own.items() if k in known} | params
            method = read_config(composed([f"method={name}"])).method
            whole = replace(config, method=method | own)
            if "front_layers" in known and cls.front_layers:  # some spare none by default
                whole.method["front_layers"] = config.model["front_layers"]
            label = name if keep is None else f"{name} keep={keep:g}"
            try:
                built = assemble.build_method(whole, facts, editor)
                attach = partial(built, trim_last=settings.trim_last)
            except ToPiError as error:  # the others can still run
                attach = refused(error)
            lines.append(Variant(label, name, attach, keep))
    return lines


def compiled_by(settings: BenchConfig) -> str | None:
    """The compiler of the blocks in words; None without one."""
    if not settings.compile:
        return None
    return f"{settings.backend} with CUDA graphs" if settings.graphs else settings.backend


def kept_share(method: "type[Method]", keep: float) -> tuple[float | None, dict[str, float]]:
    """The keep ratio that a method achieves when `keep` is asked for, and its parameters for that.

    It is a share of reference tokens, of all image tokens in a method that merges, or of steps in
    one that runs fewer; None if the method has no such parameter.
    """
    from topi.methods.floors.checker import Checkerboard
    from topi.methods.floors.downscaled_ref import DownscaledRef
    from topi.methods.floors.fewer_steps import FewerSteps
    from topi.methods.parts.pruner import ReferencePruner

    if issubclass(method, Checkerboard):
        return 0.5, {}
    if issubclass(method, DownscaledRef):
        return keep, {"scale": keep**0.5}
    if issubclass(method, FewerSteps):
        return keep, {"share": keep}
    if "ratio" not in {f.name for f in fields(method)}:
        return None, {}
    if issubclass(method, ReferencePruner):
        return keep, {"ratio": keep}
    keep = max(keep, LEAST_MERGED)
    return keep, {"ratio": round(1 - keep, 6)}


def origin(editor: Any) -> dict[str, Any]:
    """Time, device, code and versions of a benchmark."""
    import torch

    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        **provenance(
            editor.device_name,
            torch.get_num_threads(),
            torch.cuda.device_count(),
            torch.version.cuda,
        ),
    }
