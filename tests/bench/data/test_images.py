"""Every mode that Pillow opens gives the right 8-bit RGB, or a refusal."""

import io
import random
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from topi.bench.data import EditFolder
from topi.bench.data.images import damage, read_rgb, size_problem, to_rgb
from topi.errors import ToPiError

RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)
COLOURS = np.stack([RAMP, RAMP.T, 255 - RAMP], -1)


def stored(image, format, **options):
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def png(bits, colour, row, clear):
    """A PNG file of one row, with a transparent colour, as Pillow does not write it."""

    def chunk(name, data):
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    width = len(row) * 8 // bits // {0: 1, 2: 3}[colour]
    header = struct.pack(">IIBBBBB", width, 1, bits, colour, 0, 0, 0)
    content = chunk(b"tRNS", clear) + chunk(b"IDAT", zlib.compress(b"\0" + row))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + content + chunk(b"IEND", b"")


def grey(content):
    """[H, W] of an image whose channels are equal."""
    pixels = np.asarray(read_rgb(content))
    assert (pixels == pixels[..., :1]).all()
    return pixels[..., 0]


@pytest.mark.parametrize(
    "mode, format",
    [
        ("I;16", "PNG"),
        ("I;16", "JPEG2000"),
        ("I;16", "TIFF"),
        ("I;16B", "TIFF"),
        ("I;16L", "TIFF"),
    ],
)
def test_sixteen_bits_are_scaled_to_eight(mode, format):
    deep = Image.fromarray(RAMP.astype(np.uint16) * 257)
    if mode != "I;16":
        swapped = np.asarray(deep).astype(">u2" if mode == "I;16B" else "<u2")
        deep = Image.frombytes(mode, deep.size, swapped.tobytes())
    assert np.array_equal(grey(stored(deep, format)), RAMP)
    assert np.array_equal(np.asarray(to_rgb(deep))[..., 0], RAMP)  # not from a file


def test_the_range_of_a_tiff_is_what_its_tags_say():
    deep = Image.fromarray(RAMP.astype(np.uint16) * 257)
    assert np.array_equal(grey(stored(deep, "TIFF", tiffinfo={262: 0})), 255 - RAMP)
    twelve = np.array([0, 4095, 2048, 16], np.uint16)
    packed = b"".join(
        bytes([a >> 4, (a & 15) << 4 | b >> 8, b & 255]) for a, b in twelve.reshape(2, 2).tolist()
    )
    tags = {256: 4, 257: 1, 258: 12, 259: 1, 262: 1, 273: 8, 277: 1, 278: 1, 279: len(packed)}
    entries = [struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items()]
    directory = struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4)
    content = struct.pack("<2sHI", b"II", 42, 8 + len(packed)) + packed + directory
    assert grey(content).tolist() == [[0, 255, 128, 1]]


def test_a_grey_map_of_sixteen_bits_is_scaled():
    content = b"P5 2 1 65535\n" + struct.pack(">HH", 257, 65535)
    assert grey(content).tolist() == [[1, 255]]


@pytest.mark.parametrize("mode", ["I", "F"])
def test_values_of_no_known_range_are_refused_by_name(mode, tmp_path):
    numbers = Image.fromarray(RAMP.astype({"I": np.int32, "F": np.float32}[mode]))
    content = stored(numbers, "TIFF")
    with pytest.raises(ValueError, match="no known range: save it with 8 bits"):
        read_rgb(content)
    assert "no known range" in damage(content, quick=True)
    (tmp_path / "a.tif").write_bytes(content)
    (tmp_path / "edits.csv").write_text("image,instruction\na.tif,x\n")
    data = EditFolder(tmp_path)
    for read in (data.__getitem__, data.sizes):
        with pytest.raises(ToPiError, match=r"a\.tif cannot be read .*no known range"):
            read(0)


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "HSV", "RGBX"])
def test_opaque_modes_are_converted_as_ever(mode):
    image = Image.fromarray(COLOURS).convert(mode)
    assert np.array_equal(to_rgb(image), image.convert("RGB"))


def test_lab_keeps_its_colours():
    profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    colours = np.array([[[200, 100, 50], [128, 128, 128], [30, 90, 200]]], np.uint8)
    lab = ImageCms.profileToProfile(Image.fromarray(colours), *profiles, outputMode="LAB")
    back = read_rgb(stored(lab, "TIFF"))
    assert np.abs(np.asarray(back, int) - colours).max() <= 1


@pytest.mark.parametrize("mode", ["LA", "La", "RGBA", "RGBa", "PA"])
def test_transparent_pixels_are_white(mode):
    alpha = np.tile(np.array([0, 255, 128, 0], np.uint8), (2, 1))
    whole = Image.fromarray(np.dstack([np.full((2, 4, 3), 100, np.uint8), alpha]))
    steps = {"La": ["LA", "La"], "PA": ["P", "PA"]}.get(mode, [mode])
    image = whole
    for step in steps:
        image = image.convert(step)
    if mode == "PA":
        image.putalpha(whole.getchannel("A"))
    shown = np.asarray(to_rgb(image), int)[0, :, 0]
    assert np.abs(shown - [255, 100, 177, 255]).max() <= 1


@pytest.mark.parametrize(
    "content, shown",
    [
        (png(16, 0, struct.pack(">HH", 0x8000, 0x8001), struct.pack(">H", 0x8000)), [255, 128]),
        (png(4, 0, bytes([0x3F]), struct.pack(">H", 3)), [255, 255]),
        (png(2, 0, bytes([0b00011011]), struct.pack(">H", 1)), [0, 255, 170, 255]),
        (png(1, 0, bytes([0b10101010]), struct.pack(">H", 0)), [255] * 8),
        (png(8, 2, bytes([1, 1, 1, 2, 2, 2]), struct.pack(">HHH", 1, 1, 1)), [255, 2]),
    ],
)
def test_a_transparent_colour_is_white(content, shown):
    assert grey(content).tolist() == [shown]


def test_a_transparent_colour_of_sixteen_bits_is_refused():
    content = png(16, 2, bytes(12), struct.pack(">HHH", 300, 0, 0))
    with pytest.raises(ValueError, match="16 bits a channel and a transparent colour"):
        read_rgb(content)


def test_a_transparent_palette_is_white():
    paletted = Image.new("P", (2, 1))
    paletted.putpalette([10, 20, 30, 40, 50, 60])
    paletted.putdata([0, 1])
    content = stored(paletted, "PNG", transparency=0)
    assert np.asarray(read_rgb(content)).tolist() == [[[255, 255, 255], [40, 50, 60]]]


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "I;16"])
def test_the_way_up_is_kept_in_every_mode(mode):
    exif = Image.Exif()
    exif[274] = 6  # turned by a quarter
    image = Image.new(mode, (40, 20))
    assert read_rgb(stored(image, "PNG", exif=exif)).size == (20, 40)
    assert read_rgb(stored(image, "TIFF", exif=exif)).size == (20, 40)


def test_a_fingerprint_tells_pictures_that_were_read_otherwise(tmp_path):
    """Results on a transparent picture must not be mixed with those of when it was not white."""
    (tmp_path / "edits.csv").write_text("image,instruction\na.png,x\n")
    found = []
    for alpha in (255, 254):
        image = Image.new("RGBA", (64, 64), (1, 2, 3, alpha))
        image.save(tmp_path / "a.png")
        plain = EditFolder(tmp_path).fingerprint()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("topi.bench.data.folder.read_otherwise", lambda file: False)
            found.append(EditFolder(tmp_path).fingerprint() == plain)
    assert found == [True, False]


@pytest.mark.parametrize(
    "size, problem",
    [
        ((64, 512), None),
        ((512, 64), None),
        ((63, 64), "63 x 64 pixels: each side needs at least 64"),
        ((1000, 100), "1000 x 100 pixels: the longer side may be at most 8 times the shorter"),
        ((513, 64), "513 x 64 pixels: the longer side may be at most 8 times the shorter"),
    ],
)
def test_sizes_that_a_pipeline_refuses(size, problem):
    from diffusers.pipelines.flux2.image_processor import Flux2ImageProcessor

    assert size_problem(size) == problem
    if problem is None:
        Flux2ImageProcessor.check_image_input(Image.new("1", size))
    else:
        with pytest.raises(ValueError, match=r"too small|too extreme"):
            Flux2ImageProcessor.check_image_input(Image.new("1", size))


@pytest.mark.filterwarnings("ignore::UserWarning")  # of Pillow
def test_a_damaged_picture_is_read_or_refused(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100_000)  # Pillow refuses what is larger
    rng = random.Random(0)
    exif = Image.Exif()
    exif[274], exif[271] = 6, "camera"
    plain = Image.fromarray(COLOURS)
    files = [stored(plain, name, exif=exif) for name in ("PNG", "JPEG", "TIFF", "WEBP")]
    files += [
        stored(plain, name) for name in ("GIF", "BMP", "PPM", "TGA", "ICO", "PCX", "JPEG2000")
    ]
    files += [stored(plain.convert(mode), "TIFF") for mode in ("LAB", "CMYK", "1", "I;16", "LA")]
    read = refused = 0
    for _ in range(200):
        content = bytearray(rng.choice(files))
        for _ in range(rng.randrange(1, 6)):
            content[rng.randrange(len(content))] = rng.randrange(256)
        content = bytes(content[: rng.choice([len(content), rng.randrange(len(content))])])
        try:
            image = read_rgb(content)
        except ValueError as error:
            assert damage(content) == str(error) or not content
            refused += 1
        else:
            assert image.mode == "RGB"
            read += 1
    assert min(read, refused) > 40
