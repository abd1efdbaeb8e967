"""Metrics against hand values, and LPIPS against an independent implementation."""

import hashlib
import pickle

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from topi.bench.runs import lpips_weights
from topi.bench.runs.metrics import Metrics, lpips_alex
from topi.errors import ToPiError

FEATURES_SHA256 = "276812cc7430109e87ad2847e4409809bf867956c8a5e9621ae88a1bfcb08e76"


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    """A smooth scene with edges and texture, 96 px, whose values stay within 30..220."""
    y, x = np.mgrid[0:96, 0:96] / 96
    scene = np.stack([90 + 60 * np.sin(7 * x), 100 + 50 * y, 120 + 40 * np.cos(9 * x * y)], -1)
    scene[20:50, 30:70] = (200, 60, 50)
    scene[60:85, 10:40] += 20 * np.sin(40 * x[60:85, 10:40])[..., None]
    return Image.fromarray(scene.clip(30, 220).astype(np.uint8))


@pytest.fixture(scope="module")
def metrics() -> Metrics:
    return Metrics()


def shifted(image: Image.Image, offset: int) -> Image.Image:
    return Image.fromarray((np.asarray(image).astype(int) + offset).astype(np.uint8))


def noisy(image: Image.Image, sigma: float) -> Image.Image:
    noise = np.random.default_rng(0).normal(0, sigma, (*image.size, 3))
    return Image.fromarray((np.asarray(image) + noise).clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize("offset", [1, 5, 20])
def test_psnr_of_a_constant_offset(picture, offset):
    scores = Metrics(lpips=False)(shifted(picture, offset), picture)
    assert scores["psnr"] == pytest.approx(20 * np.log10(255 / offset), abs=1e-5)


def test_psnr_of_black_against_white_is_zero():
    black, white = (Image.new("RGB", (32, 32), color) for color in ("black", "white"))
    assert Metrics(lpips=False)(black, white)["psnr"] == pytest.approx(0, abs=1e-5)


def test_ssim_of_flat_images_follows_the_luminance_term():
    first, second = (Image.new("RGB", (32, 32), (level,) * 3) for level in (100, 150))
    c1 = (0.01 * 255) ** 2
    expected = (2 * 100 * 150 + c1) / (100**2 + 150**2 + c1)
    assert Metrics(lpips=False)(first, second)["ssim"] == pytest.approx(expected, rel=1e-6)


def test_equal_images_score_perfectly(metrics, picture):
    assert metrics(picture, picture) == {"psnr": np.inf, "ssim": pytest.approx(1), "lpips": 0.0}


def test_without_lpips_no_weights_are_needed(monkeypatch, tmp_path, picture):
    monkeypatch.setattr(lpips_weights, "weights_path", lambda: tmp_path / "alexnet.ckpt")
    assert set(Metrics(lpips=False)(picture, picture)) == {"psnr", "ssim"}


def test_sizes_must_agree(picture):
    with pytest.raises(ToPiError, match="48"):
        Metrics(lpips=False)(picture.resize((48, 48)), picture)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda image, amount: image.filter(ImageFilter.GaussianBlur(amount)),
        lambda image, amount: noisy(image, 12 * amount),
    ],
    ids=["blur", "noise"],
)
def test_every_metric_worsens_with_blur_and_noise(metrics, picture, spoil):
    scores = [metrics(spoil(picture, amount), picture) for amount in (0.5, 1, 2, 4)]
    for name, direction in (("psnr", -1), ("ssim", -1), ("lpips", 1)):
        values = [direction * score[name] for score in scores]
        assert values == sorted(values), name
        assert values[-1] > values[0], name


def test_lpips_equals_torchmetrics_with_the_same_backbone(monkeypatch, metrics, picture):
    """torchmetrics has its own copy of the heads, the scaling and the distance."""
    import torchmetrics.functional.image.lpips as theirs
    from torchvision.models import alexnet

    features = alexnet(weights=None).features
    features.load_state_dict(lpips_weights.alexnet_features())
    monkeypatch.setattr(theirs, "_get_tv_model_features", lambda net, pretrained=False: features)
    other = noisy(picture, 25)
    x, y = (
        torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)[None] / 127.5 - 1
        for image in (other, picture)
    )
    expected = theirs.learned_perceptual_image_patch_similarity(x, y, net_type="alex").item()
    assert metrics(other, picture)["lpips"] == pytest.approx(expected, rel=1e-5)


def test_the_lin_heads_in_the_weights_file_are_those_of_lpips():
    """If the heads in the same file agree exactly, file, layout and transpose are right."""
    content = lpips_weights.weights_path().read_bytes()
    heads = lpips_weights.read_arrays(content)
    network = lpips_alex()
    for number in range(5):
        ours = torch.from_numpy(heads[f"NetLinLayer_{number}"]["Conv_0"]["kernel"].copy())
        assert torch.equal(ours.permute(3, 2, 0, 1), network.lins[number].model[1].weight), number


def test_the_converted_features_are_the_verified_ones():
    """With exactly these bytes LPIPS gives 0.722 and 0.138 on the example pair of its authors."""
    state = lpips_weights.alexnet_features()
    assert sum(tensor.numel() for tensor in state.values()) == 2_469_696
    content = b"".join(state[name].numpy().tobytes() for name in sorted(state))
    assert hashlib.sha256(content).hexdigest() == FEATURES_SHA256


def test_a_random_backbone_would_be_noticed(metrics, picture):
    """Trained features mind a blur seven times more than a dimmed light, random ones less."""
    dimmed = Image.fromarray((0.82 * np.asarray(picture).astype(float) + 12).astype(np.uint8))
    blurred = picture.filter(ImageFilter.GaussianBlur(1))

    def blur_over_light(score: Metrics) -> float:
        return score(blurred, picture)["lpips"] / score(dimmed, picture)["lpips"]

    assert blur_over_light(metrics) > 5
    for seed in range(3):
        torch.manual_seed(seed)
        random = Metrics()
        for layer in random.lpips.net.modules():
            if isinstance(layer, torch.nn.Conv2d):
                layer.reset_parameters()
        assert blur_over_light(random) < 1


def test_missing_weights_name_the_command(tmp_path):
    with pytest.raises(ToPiError, match="topi fetch-lpips"):
        lpips_weights.alexnet_features(tmp_path / "alexnet.ckpt")


def test_a_changed_file_is_refused(tmp_path):
    path = tmp_path / "alexnet.ckpt"
    content = bytearray(lpips_weights.weights_path().read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ToPiError, match="pinned"):
        lpips_weights.alexnet_features(path)


def test_the_reader_runs_no_code():
    class Evil:
        def __reduce__(self):
            return print, ("called",)

    with pytest.raises(pickle.UnpicklingError, match="print"):
        lpips_weights.read_arrays(pickle.dumps(Evil()))
