"""Golden pixels are computed here with numpy from the format's definition, never with the code under test."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from tenfold.config import ShrinkConfig
from tenfold.data.decode import Decoded, decode, encode_png, examine
from tenfold.errors import BadImageError

Pixels = NDArray[np.uint8]


def noise(height: int = 13, width: int = 17, channels: int = 3, seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def as_rgb(grey: Pixels) -> Pixels:
    return np.repeat(grey[..., None], 3, axis=2)


def png(width: int, height: int, depth: int, color: int, rows: bytes) -> bytes:
    """Write a PNG by hand: Pillow cannot write 16-bit colours."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def png16(samples: NDArray[np.uint16]) -> bytes:
    height, width = samples.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    return png(width, height, 16, 2 if samples.ndim == 3 else 0, rows)


def orientation(value: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = value
    return exif


def flat_jpeg(mode: str, color: tuple[int, ...]) -> bytes:
    return saved(Image.new(mode, (16, 16), color), "JPEG", quality=100)


def same(decoded: Decoded, pixels: Pixels) -> None:
    """Check the pixels, and that the bytes that are kept give the same ones."""
    np.testing.assert_array_equal(decoded.pixels, pixels)
    assert decoded.pixels.dtype == np.uint8
    kept = Image.open(io.BytesIO(decoded.encoded))
    assert kept.format == {"jpg": "JPEG", "png": "PNG"}[decoded.extension]
    np.testing.assert_array_equal(np.asarray(kept.convert("RGB")), pixels)


# --- what keeps its bytes ------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize(("kind", "extension"), [("JPEG", "jpg"), ("PNG", "png")])
def test_plain_jpeg_and_png_keep_their_bytes(mode: str, kind: str, extension: str) -> None:
    data = saved(Image.fromarray(noise()).convert(mode), kind)
    decoded = decode(data)
    assert decoded.encoded == data
    assert decoded.extension == extension
    same(decoded, np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


def test_an_upright_exif_tag_keeps_the_bytes() -> None:
    data = saved(Image.fromarray(noise()), "JPEG", exif=orientation(1))
    assert decode(data).encoded == data


def test_the_format_is_told_by_content_and_not_by_name() -> None:
    decoded = decode(saved(Image.fromarray(noise()), "BMP"))
    assert decoded.extension == "png"
    same(decoded, noise())


# --- what is re-encoded --------------------------------------------------------------------------------


def test_grey_becomes_three_equal_channels() -> None:
    grey = noise()[..., 0]
    same(decode(saved(Image.fromarray(grey), "PNG")), as_rgb(grey))


@pytest.mark.parametrize(
    ("ink", "rgb"),
    [((0, 0, 0, 0), (255, 255, 255)), ((255, 0, 0, 0), (0, 255, 255)), ((0, 255, 255, 0), (255, 0, 0)),
     ((0, 0, 0, 255), (0, 0, 0)), ((0, 0, 0, 128), (127, 127, 127))],
)  # fmt: skip
def test_cmyk_jpeg_becomes_the_colours_that_its_inks_stand_for(ink: tuple[int, ...], rgb: tuple[int, int, int]) -> None:
    decoded = decode(flat_jpeg("CMYK", ink))
    assert decoded.extension == "png"
    assert np.abs(decoded.pixels.astype(int) - rgb).max() <= 2  # JPEG is not exact
    same(decoded, decoded.pixels)


def test_palette_becomes_its_colours() -> None:
    palette = noise(1, 4)[0]
    indices = np.arange(20, dtype=np.uint8).reshape(4, 5) % 4
    image = Image.new("P", (5, 4))
    image.putdata(indices.flatten().tolist())
    image.putpalette(palette.flatten().tolist())
    same(decode(saved(image, "PNG")), palette[indices])


def test_transparent_palette_entries_lie_on_white() -> None:
    palette = np.array([[200, 0, 0], [0, 100, 0], [0, 0, 50]], dtype=np.uint8)
    alpha = np.array([255, 0, 51])
    indices = np.array([[0, 1, 2], [2, 1, 0]])
    image = Image.new("P", (3, 2))
    image.putdata(indices.flatten().tolist())
    image.putpalette(palette.flatten().tolist())
    data = saved(image, "PNG", transparency=bytes(alpha.tolist()))
    over = np.rint((palette * alpha[:, None] + 255.0 * (255 - alpha[:, None])) / 255).astype(np.uint8)
    same(decode(data), over[indices])


def test_alpha_lies_on_white() -> None:
    pixels = noise(channels=4)
    pixels[0, 0], pixels[0, 1] = (10, 20, 30, 0), (10, 20, 30, 255)
    decoded = decode(saved(Image.fromarray(pixels), "PNG"))
    alpha = pixels[..., 3:].astype(float)
    golden = np.rint((pixels[..., :3] * alpha + 255 * (255 - alpha)) / 255).astype(int)
    assert np.abs(decoded.pixels.astype(int) - golden).max() <= 1
    assert decoded.pixels[0, 0].tolist() == [255, 255, 255]
    assert decoded.pixels[0, 1].tolist() == [10, 20, 30]


def test_a_colour_that_a_png_calls_transparent_becomes_white() -> None:
    pixels = np.array([[[1, 2, 3], [4, 5, 6]]], dtype=np.uint8)
    golden = np.array([[[255, 255, 255], [4, 5, 6]]], dtype=np.uint8)
    same(decode(saved(Image.fromarray(pixels), "PNG", transparency=(1, 2, 3))), golden)


def test_grey_with_alpha_lies_on_white() -> None:
    pixels = np.array([[[100, 255], [100, 0]]], dtype=np.uint8)
    same(decode(saved(Image.fromarray(pixels), "PNG")), np.array([[[100] * 3, [255] * 3]], dtype=np.uint8))


def test_bilevel_becomes_black_and_white() -> None:
    bits = noise()[..., 0] > 127
    same(decode(saved(Image.fromarray(bits), "PNG")), as_rgb(bits.astype(np.uint8) * 255))


def test_four_bit_grey_is_scaled_to_eight() -> None:
    rows = b"\0\x0f\xf0" + b"\0\x12\x34"
    grey = np.array([[0, 15, 15, 0], [1, 2, 3, 4]], dtype=np.uint8) * 17
    decoded = decode(png(4, 2, 4, 0, rows))
    same(decoded, as_rgb(grey))
    assert decoded.encoded[24] == 8


def test_sixteen_bit_grey_is_scaled_and_rounded() -> None:
    grey = np.array([[0, 128, 129, 257], [32768, 65406, 65407, 65535]], dtype=np.uint16)
    golden = np.array([[0, 0, 1, 1], [128, 254, 255, 255]], dtype=np.uint8)
    same(decode(png16(grey)), as_rgb(golden))
    same(decode(saved(Image.fromarray(grey), "TIFF")), as_rgb(golden))


def test_sixteen_bit_colours_lose_their_low_byte_and_are_kept_with_eight() -> None:
    wide = np.random.default_rng(0).integers(0, 65536, (6, 5, 3), dtype=np.uint16)
    decoded = decode(png16(wide))
    same(decoded, (wide >> 8).astype(np.uint8))
    assert decoded.encoded[24] == 8


@pytest.mark.parametrize(
    ("value", "upright"),
    [
        (2, lambda a: a[:, ::-1]), (3, lambda a: a[::-1, ::-1]), (4, lambda a: a[::-1]),
        (5, lambda a: a.transpose(1, 0, 2)), (6, lambda a: np.rot90(a, -1)),
        (7, lambda a: a[::-1, ::-1].transpose(1, 0, 2)), (8, lambda a: np.rot90(a, 1)),
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_exif_rotation_is_applied_once(kind: str, value: int, upright: Callable[[Pixels], Pixels]) -> None:
    data = saved(Image.fromarray(noise()), kind, exif=orientation(value))
    decoded = decode(data)
    same(decoded, upright(np.asarray(Image.open(io.BytesIO(data)))))
    again = decode(decoded.encoded)
    assert again.encoded == decoded.encoded


def test_exif_rotation_of_sixteen_bit_grey_is_applied() -> None:
    wide = np.array([[0, 257, 514], [771, 1028, 1285]], dtype=np.uint16)
    data = saved(Image.fromarray(wide), "PNG", exif=orientation(6))
    same(decode(data), as_rgb(np.rot90(np.arange(6, dtype=np.uint8).reshape(2, 3), -1)))


def test_an_exif_orientation_that_means_nothing_rotates_nothing() -> None:
    same(decode(saved(Image.fromarray(noise()), "PNG", exif=orientation(9))), noise())


def test_of_an_animation_the_first_frame_is_taken() -> None:
    frames = [Image.new("RGB", (4, 4), color) for color in ("#ff0000", "#00ff00")]
    data = saved(frames[0], "GIF", save_all=True, append_images=frames[1:])
    same(decode(data), np.full((4, 4, 3), (255, 0, 0), dtype=np.uint8))


def test_of_a_phones_double_picture_the_first_is_taken() -> None:
    """Such .jpg files are a JPEG with more pictures behind it (MPO)."""
    frames = [Image.fromarray(noise(seed=seed)) for seed in (0, 1)]
    data = saved(frames[0], "MPO", save_all=True, append_images=frames[1:])
    same(decode(data), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


@pytest.mark.parametrize("kind", ["BMP", "TIFF", "PPM", "WEBP"])
def test_lossless_formats_keep_their_pixels(kind: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    same(decode(saved(Image.fromarray(noise()), kind, **options)), noise())


def test_dali_and_pillow_see_the_same_pixels_in_all_that_is_kept_as_png() -> None:
    dali = pytest.importorskip("nvidia.dali")
    from nvidia.dali import fn, types

    originals = [
        flat_jpeg("CMYK", (10, 200, 30, 40)),
        saved(Image.fromarray(noise(channels=4)), "PNG"),
        saved(Image.fromarray(noise()).quantize(16), "PNG"),
        saved(Image.fromarray(noise()), "PNG"),
        saved(Image.fromarray(noise()[..., 0]), "PNG"),
        saved(Image.fromarray(noise()), "PNG", exif=orientation(6)),
        saved(Image.fromarray(noise()), "JPEG", exif=orientation(8)),
        saved(Image.fromarray(noise()), "TIFF"),
        png16(np.random.default_rng(0).integers(0, 65536, (6, 5, 3), dtype=np.uint16)),
        png16(np.random.default_rng(0).integers(0, 65536, (6, 5), dtype=np.uint16)),
        png(4, 2, 4, 0, b"\0\x0f\xf0" + b"\0\x12\x34"),
    ]
    kept = [decode(data) for data in originals]
    assert {one.extension for one in kept} == {"png"}
    pipe = dali.Pipeline(batch_size=len(kept), num_threads=1, device_id=None)
    with pipe:
        files = fn.external_source(source=[[np.frombuffer(one.encoded, np.uint8) for one in kept]], cycle=True)
        pipe.set_outputs(fn.decoders.image(files, device="cpu", output_type=types.RGB))
    pipe.build()
    [batch] = pipe.run()
    for number, one in enumerate(kept):
        np.testing.assert_array_equal(np.asarray(batch[number]), one.pixels)
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(one.encoded)).convert("RGB")), one.pixels)


# --- limits --------------------------------------------------------------------------------------------


def test_an_image_of_just_the_allowed_size_passes() -> None:
    data = saved(Image.fromarray(noise(10, 10)), "PNG")
    same(decode(data, max_pixels=100), noise(10, 10))
    with pytest.raises(BadImageError, match=r"10 x 10 pixels, more than max_pixels=99"):
        decode(data, max_pixels=99)


def test_what_is_encoded_as_png_is_the_same_bytes_again() -> None:
    assert encode_png(noise()) == encode_png(noise())


# --- what is known of an image that goes into a shard ---------------------------------------------------


def scene(height: int, width: int) -> Image.Image:
    rows, columns = np.linspace(0, 5, height)[:, None, None], np.linspace(0, 7, width)[None, :, None]
    return Image.fromarray((127 + 120 * np.sin(rows + columns * np.array([1.0, 0.7, 0.4]))).astype(np.uint8))


KINDS: dict[str, Callable[[], bytes]] = {
    "jpeg": lambda: saved(scene(375, 500), "JPEG"),
    "progressive jpeg": lambda: saved(scene(375, 500), "JPEG", progressive=True),
    "grey jpeg": lambda: saved(scene(375, 500).convert("L"), "JPEG"),
    "jpeg of RGB planes": lambda: saved(scene(80, 90), "JPEG", keep_rgb=True),
    "small jpeg": lambda: saved(scene(7, 5), "JPEG"),
    "rotated jpeg": lambda: saved(scene(100, 200), "JPEG", exif=orientation(6)),
    "cmyk jpeg": lambda: saved(scene(100, 200).convert("CMYK"), "JPEG"),
    "png": lambda: saved(scene(100, 200), "PNG"),
    "webp": lambda: saved(scene(100, 200), "WEBP", lossless=True),
    "16-bit png": lambda: png16(noise(20, 30, 1)[..., 0].astype(np.uint16) * 257),
}


@pytest.mark.parametrize("kind", KINDS)
def test_an_examined_image_is_kept_as_a_decoded_one(kind: str) -> None:
    data = KINDS[kind]()
    examined, decoded = examine(data), decode(data)
    assert (examined.encoded, examined.extension) == (decoded.encoded, decoded.extension)
    assert (examined.height, examined.width) == decoded.pixels.shape[:2]
    again = examine(encode_png(decoded.pixels))
    assert (examined.look ^ again.look).bit_count() <= 3, "an eighth of the size looks alike"


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("share", [0.3, 0.8, 0.99])
def test_a_large_jpeg_that_is_cut_is_refused_whichever_scan_it_was_cut_in(progressive: bool, share: float) -> None:
    data = saved(Image.fromarray(noise(300, 400)), "JPEG", progressive=progressive)
    with pytest.raises(BadImageError, match="truncated or damaged"):
        examine(data[: int(share * len(data))])


def test_a_large_image_is_shrunk_and_a_small_one_keeps_its_bytes() -> None:
    shrink = ShrinkConfig(longest=64, quality=95)
    large = examine(saved(scene(100, 200), "PNG"), shrink=shrink)
    assert (large.extension, large.width, large.height) == ("jpg", 64, 32)
    pixels = decode(large.encoded).pixels.astype(float)
    assert np.abs(pixels - np.asarray(scene(100, 200).resize((64, 32), Image.Resampling.LANCZOS))).mean() < 3
    assert large == examine(saved(scene(100, 200), "PNG"), shrink=shrink)
    for data in (saved(scene(60, 64), "JPEG"), saved(scene(60, 64), "PNG")):
        assert examine(data, shrink=shrink).encoded == data


def test_a_large_rotated_jpeg_is_shrunk_upright() -> None:
    made = examine(saved(scene(100, 200), "JPEG", exif=orientation(6)), shrink=ShrinkConfig(longest=50))
    assert (made.width, made.height) == (25, 50)


def _stray_byte(data: bytes) -> bytes:
    where = data.index(b"\xff\xdb")
    return data[:where] + b"\x00" + data[where:]


DAMAGED: dict[str, Callable[[], bytes]] = {
    "png without its end": lambda: saved(scene(40, 50), "PNG")[:-12],
    "png cut by a byte": lambda: saved(scene(40, 50), "PNG")[:-1],
    "png with a wrong checksum": lambda: saved(scene(40, 50), "PNG")[:29] + bytes(4) + saved(scene(40, 50), "PNG")[33:],
    "png with something behind it": lambda: saved(scene(40, 50), "PNG") + b"x",
    "jpeg with a stray byte": lambda: _stray_byte(saved(scene(40, 50), "JPEG")),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_what_pillow_forgives_and_other_decoders_do_not_is_written_anew_or_refused(kind: str) -> None:
    data = DAMAGED[kind]()
    try:
        examined = examine(data)
    except BadImageError:
        return
    assert examined.encoded != data
    assert examined.extension == "png"
    assert examine(examined.encoded).encoded == examined.encoded


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 2}, {"subsampling": 0}])
def test_sound_jpegs_of_all_kinds_keep_their_bytes(options: dict[str, object]) -> None:
    for data in (saved(scene(40, 50), "JPEG", **options), saved(scene(40, 50), "JPEG", **options) + b"\0\0a trailer"):
        assert examine(data).encoded == data
