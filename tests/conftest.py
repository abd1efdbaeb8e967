"""Tiny pipelines for every test; one thread, no network."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest

ONE_PROCESS = "tests/bench/report/"
"""Its files share a store and a report that take half a minute to make."""


def pytest_collection_modifyitems(items):
    """Files with slow tests start first, so that no process is left with one at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Hand tests to processes by file, as `--dist loadfile` does, and those in ONE_PROCESS as one.

    A file with module fixtures stays together, and the order of the files is kept.
    """
    from xdist.scheduler import LoadFileScheduling

    class ByFile(LoadFileScheduling):
        def _split_scope(self, nodeid):
            return ONE_PROCESS if nodeid.startswith(ONE_PROCESS) else super()._split_scope(nodeid)

    config.option.loadscopereorder = False
    return ByFile(config, log)


@pytest.fixture(scope="session")
def tiny():
    """`tiny("flux", dual=1)` -> (pipeline, maker of its call arguments).

    Built once and shared by all tests: methods must leave a pipeline as they found it.
    """
    import torch

    from topi.models import tiny as models

    torch.set_num_threads(1)
    built = {}

    def build(kind, **options):
        key = (kind, *sorted(options.items()))
        if key not in built:
            built[key] = getattr(models, f"tiny_{kind}")(**options)
        return built[key]

    return build


@pytest.fixture(scope="session")
def flux(tiny):
    return tiny("flux")


@pytest.fixture(scope="session")
def qwen(tiny):
    return tiny("qwen")


@pytest.fixture(scope="session")
def qwen_plus(tiny):
    return tiny("qwen_plus")


@pytest.fixture(scope="session")
def with_ip_adapter(tiny):
    """`with_ip_adapter(scale=1.0)` -> as `tiny("flux")`, and each call has a prompt picture.

    As `load_ip_adapter` leaves a pipeline: the dual blocks attend to the picture's tokens as well.
    """
    import copy

    import torch
    from diffusers.models.transformers.transformer_flux import FluxIPAdapterAttnProcessor

    def build(scale=1.0):
        stock, plain = tiny("flux")
        pipe = copy.copy(stock)
        pipe.transformer = copy.deepcopy(stock.transformer)
        torch.manual_seed(1)
        tokens = torch.randn(1, 4, 32)
        for block in pipe.transformer.transformer_blocks:
            processor = FluxIPAdapterAttnProcessor(64, 32, scale=scale).requires_grad_(False)
            block.attn.set_processor(processor)

        def call(**arguments):
            return plain(**arguments, joint_attention_kwargs={"ip_hidden_states": [tokens]})

        return pipe, call

    return build


@pytest.fixture(scope="session")
def recorded():
    """`recorded(pipe, arguments)` -> the keyword arguments of a pipeline's transformer calls."""

    def record(pipe, arguments):
        calls = []
        hook = pipe.transformer.register_forward_pre_hook(
            lambda module, args, kwargs: calls.append(dict(kwargs)), with_kwargs=True
        )
        pipe(**arguments)
        hook.remove()
        return calls

    return record


@pytest.fixture
def edits(monkeypatch):
    """The ids of the samples that tiny editors edit from here on."""
    from topi.bench.editors.editor import TinyEditor

    seen, real = [], TinyEditor.edit
    monkeypatch.setattr(
        TinyEditor,
        "edit",
        lambda self, sample, seed: (seen.append(sample.id), real(self, sample, seed))[1],
    )
    return seen


@pytest.fixture(scope="session")
def calm(tmp_path_factory):
    """A cell of four samples that nothing happens to."""
    from small_cells import config_for, only_cell

    from topi.bench.runs import compute

    store = tmp_path_factory.mktemp("calm")
    compute.run(config_for(store, "data.count=4", "latency.samples=0"))
    return only_cell(store)
