"""The path of real weights: repositories as the hub lays them out, tiny, in the stock pipelines."""

import huggingface_hub.constants
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLQwenImage,
    DiffusionPipeline,
    FluxKontextPipeline,
    FluxTransformer2DModel,
    QwenImageEditPipeline,
    QwenImageEditPlusPipeline,
    QwenImageTransformer2DModel,
)
from diffusers.pipelines.flux import pipeline_flux_kontext
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit, pipeline_qwenimage_edit_plus
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
    T5Config,
    T5EncoderModel,
)

from topi.bench.data import EditSample
from topi.bench.editors.editor import PIPELINES, load_editor
from topi.methods.paper.topi import ToPi
from topi.models.scheduler import flux_scheduler
from topi.models.tiny import HEADS, TINY_KL, TINY_QWEN_VAE, WIDTH, random_image

COMMIT = "0123456789abcdef0123456789abcdef01234567"
KINDS = ("kontext", "qwen_edit", "qwen_edit_plus")
CONFIG = dict(source="hub", hub_id="org/tiny", revision="main", dtype="float32", device="cpu")
CONFIG |= dict(steps=4, height=64, width=64, guidance=2.5, true_cfg=4.0, negative_prompt=" ")
PICTURE = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
WORDS = ("<pad>", "<end>", "<other>", "add", "a", "red", "disc", *PICTURE)
NUMBER = {word: number for number, word in enumerate(WORDS)}
SIDE = 96
"""Pixels along each side of a reference, which the stock pipelines take to a megapixel."""


def word_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordLevel(NUMBER, unk_token="<other>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    names = dict(pad_token="<pad>", eos_token="<end>", unk_token="<other>")
    found = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=77, extra_special_tokens=list(PICTURE), **names
    )
    found.image_token, found.video_token = PICTURE[:2]
    return found


def kontext() -> FluxKontextPipeline:
    """With all that the published pipeline has, text encoders included."""
    sizes = dict(hidden_size=WIDTH, intermediate_size=WIDTH, num_hidden_layers=1)
    clip = CLIPTextConfig(
        **sizes, num_attention_heads=2, vocab_size=len(WORDS), bos_token_id=0, eos_token_id=1
    )
    t5 = T5Config(
        d_model=WIDTH, d_kv=16, d_ff=WIDTH, num_layers=1, num_heads=2, vocab_size=len(WORDS)
    )
    return FluxKontextPipeline(
        scheduler=flux_scheduler(),
        vae=AutoencoderKL(**TINY_KL),
        text_encoder=CLIPTextModel(clip),
        tokenizer=word_tokenizer(),
        text_encoder_2=T5EncoderModel(t5),
        tokenizer_2=word_tokenizer(),
        transformer=FluxTransformer2DModel(
            patch_size=1,
            in_channels=64,
            num_layers=1,
            num_single_layers=2,
            joint_attention_dim=WIDTH,
            pooled_projection_dim=WIDTH,
            guidance_embeds=True,
            **HEADS,
        ),
    )


def qwen(cls: type[DiffusionPipeline]) -> DiffusionPipeline:
    """With a vision-language model that sees the reference, as the published pipelines."""
    text = dict(hidden_size=WIDTH, intermediate_size=WIDTH, num_hidden_layers=1)
    text |= dict(num_attention_heads=2, num_key_value_heads=1, vocab_size=len(WORDS))
    text |= dict(bos_token_id=0, eos_token_id=1, pad_token_id=0)
    text["rope_scaling"] = {"rope_type": "default", "mrope_section": [2, 3, 3]}
    vision = dict(depth=1, hidden_size=WIDTH, num_heads=2, out_hidden_size=WIDTH)
    vision |= dict(intermediate_size=WIDTH, fullatt_block_indexes=[0])
    names = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    numbers = {name: NUMBER[word] for name, word in zip(names, PICTURE, strict=True)}
    config = Qwen2_5_VLConfig(text_config=text, vision_config=vision, **numbers)
    tokenizer = word_tokenizer()
    looks = Qwen2VLImageProcessor(min_pixels=56 * 56, max_pixels=112 * 112)
    return cls(
        scheduler=flux_scheduler(),
        vae=AutoencoderKLQwenImage(**TINY_QWEN_VAE),
        text_encoder=Qwen2_5_VLForConditionalGeneration(config),
        tokenizer=tokenizer,
        processor=Qwen2VLProcessor(looks, tokenizer, Qwen2VLVideoProcessor()),
        transformer=QwenImageTransformer2DModel(
            patch_size=2,
            in_channels=64,
            out_channels=16,
            num_layers=3,
            joint_attention_dim=WIDTH,
            **HEADS,
        ),
    )


@pytest.fixture(scope="module")
def pipelines():
    torch.manual_seed(0)
    made = {
        "kontext": kontext(),
        "qwen_edit": qwen(QwenImageEditPipeline),
        "qwen_edit_plus": qwen(QwenImageEditPlusPipeline),
    }
    with torch.no_grad():  # as they begin, modulations of zero make all outputs alike
        for pipe in made.values():
            for parameter in pipe.transformer.parameters():
                parameter.normal_(std=0.1)
    return made


@pytest.fixture(autouse=True)
def small_references(monkeypatch):
    """The stock pipelines take every reference to about one megapixel; here, to `SIDE`."""
    monkeypatch.setattr(pipeline_flux_kontext, "PREFERRED_KONTEXT_RESOLUTIONS", [(SIDE, SIDE)])
    both = {pipeline_qwenimage_edit: (SIDE, SIDE, None), pipeline_qwenimage_edit_plus: (SIDE, SIDE)}
    for module, size in both.items():
        monkeypatch.setattr(module, "calculate_dimensions", lambda area, ratio, size=size: size)


@pytest.fixture
def cached(pipelines, tmp_path, monkeypatch):
    """Puts a repository into the hub's cache, and takes the network away; returns its snapshot."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)

    def cached(kind):
        repository = tmp_path / "models--org--tiny"
        pipelines[kind].save_pretrained(repository / "snapshots" / COMMIT)
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text(COMMIT)
        return repository / "snapshots" / COMMIT

    return cached


def editor_of(kind, **changed):
    return load_editor(dict(CONFIG, name=kind, kind=kind) | changed)


def sample_for(kind):
    count = 2 if kind == "qwen_edit_plus" else 1
    references = tuple(random_image((64, 64), seed) for seed in range(count))
    return EditSample("one", "local_edit", "add", "add a red disc", references)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_of_the_hub_edit_and_are_pruned(cached, pipelines, kind):
    cached(kind)
    editor, sample = editor_of(kind), sample_for(kind)
    assert type(editor.pipe) is PIPELINES[kind]
    own = editor.transformer.state_dict()
    assert all(torch.equal(v, own[k]) for k, v in pipelines[kind].transformer.state_dict().items())
    whole = editor.edit(sample)
    assert whole.size == (64, 64)  # as asked for, while the pipeline chose the references'
    with ToPi(tau=1, layers=(0, 1, 2), front_layers=1)(editor.pipe):
        assert editor.edit(sample).tobytes() == whole.tobytes()
    with ToPi(ratio=0.5, layers=(0, 1, 2), front_layers=1)(editor.pipe) as method:
        assert editor.edit(sample).tobytes() != whole.tobytes()
    layout, side = method.trace[0].layout, SIDE // 16
    assert layout.target_grid == (4, 4)
    assert layout.reference_grids == ((side, side),) * len(sample.references)
    kept = {len(record.kept) for record in method.trace if record.kept is not None}
    assert kept == {layout.n_reference // 2}
    branches = {record.branch for record in method.trace}
    assert len(branches) == (1 if kind == "kontext" else 2)


def test_the_fingerprint_is_the_commit_behind_a_branch(cached):
    cached("kontext")
    for revision in ("main", COMMIT):
        assert editor_of("kontext", revision=revision).fingerprint() == f"org/tiny@{COMMIT}"


def test_a_folder_needs_no_hub(cached):
    editor = editor_of("kontext", hub_id=str(cached("kontext")))
    assert "@" not in editor.fingerprint()
    assert editor.edit(sample_for("kontext")).size == (64, 64)
