"""Images of other channels and bits than 8-bit RGB, from the file to the prediction."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
import torch
from chain import new_work
from PIL import Image
from pydantic import ValidationError

from tenfold.augment.evaluation import evaluation_views
from tenfold.augment.spec import ViewSpec, resolve_specs
from tenfold.augment.stream import ViewStream
from tenfold.components.finetune import stage as finetune
from tenfold.config import (
    AugmentConfig,
    BaselineConfig,
    DataConfig,
    Description,
    EvalViewConfig,
    PixelsConfig,
    ResNetConfig,
    RunConfig,
    ViewConfig,
    load_config,
)
from tenfold.data.build import build_dataset
from tenfold.data.channels import Raw, as_rgb, encode_npy, read_channels
from tenfold.data.decode import examine
from tenfold.data.listing import list_images
from tenfold.data.manifest import Dataset
from tenfold.data.reader import SplitReader
from tenfold.data.sources import open_source
from tenfold.errors import BadImageError, ConfigError, DataError
from tenfold.evaluation.audit import audit_labels
from tenfold.fingerprint import digest
from tenfold.models.saved import build, save
from tenfold.pipelines.plan import wiring
from tenfold.predictor import Predictor
from tenfold.storage import FileStore

FOUR = PixelsConfig(channels=4)
IMAGE: Raw = np.random.default_rng(0).integers(0, 65_536, (40, 50, 4), dtype=np.uint16)


def tiff(values: Raw, **settings: Any) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, values, **{"photometric": "minisblack", **settings})
    return buffer.getvalue()


by_pixel = partial(tiff, IMAGE, planarconfig="contig")
by_channel = partial(tiff, IMAGE.transpose(2, 0, 1).copy())
ENCODED: dict[str, bytes] = {
    "png": imagecodecs.png_encode(IMAGE),
    "tif": by_pixel(),
    "tif, a plane a channel": by_channel(planarconfig="separate"),
    "tif, a page a channel": by_channel(),
    "tif, big and big-endian": by_pixel(bigtiff=True, byteorder=">"),
    "tif, LZW": by_pixel(compression="lzw", predictor=True),
    "tif, Zstandard": by_pixel(compression="zstd"),
    "tif, tiles": by_pixel(tile=(16, 16), compression="deflate"),
    "npy": encode_npy(IMAGE),
    "npy, big-endian": encode_npy(IMAGE.astype(">u2")),
    "npy, by column": encode_npy(np.asfortranarray(IMAGE)),
}


@pytest.mark.parametrize("name", ENCODED)
def test_every_format_gives_the_same_values(name: str) -> None:
    values, extension = read_channels(ENCODED[name], FOUR)
    assert extension == name[:3]
    assert values.dtype == np.uint16
    assert values.flags.c_contiguous
    np.testing.assert_array_equal(values, IMAGE)


@pytest.mark.parametrize("name", ENCODED)
def test_a_damaged_file_is_told_or_read_aright(name: str) -> None:
    """Cut anywhere, a file is refused unless only what nobody needs is missing; with a bit turned nothing breaks."""
    data, rng = ENCODED[name], np.random.default_rng(1)
    for cut in range(0, len(data) - 1, max(1, len(data) // 100)):
        try:
            np.testing.assert_array_equal(read_channels(data[:cut], FOUR)[0], IMAGE)
        except BadImageError:
            continue
    for _ in range(200):
        turned = bytearray(data)
        turned[rng.integers(0, 400)] ^= 1 << int(rng.integers(0, 8))
        found = []
        for left in (1111, 2222):  # what other arrays leave in memory must not be taken for pixels
            del_me = [np.full(size, left, np.uint16) for size in (2000, 4000, 8000) for _ in range(4)]
            del del_me
            try:
                found.append(read_channels(bytes(turned), FOUR)[0].tobytes())
            except BadImageError as error:
                found.append(str(error).encode())
        assert found[0] == found[1]


def test_a_tif_that_yields_only_a_part_of_its_pixels_is_refused_when_it_is_packed() -> None:
    """tifffile reads it and leaves the rest as it finds it. LZW's codes 256 and 257: begin, and end at once."""
    data = bytearray(ENCODED["tif, LZW"])
    with tifffile.TiffFile(io.BytesIO(bytes(data))) as file:
        start = file.pages[0].dataoffsets[0]  # type: ignore[union-attr]
    assert examine(bytes(data), pixels=FOUR).extension == "tif"
    data[start : start + 3] = b"\x80\x40\x40"
    with pytest.raises(BadImageError, match=r"lacks parts of its data|truncated or damaged"):
        examine(bytes(data), pixels=FOUR)


def npy_header(shape: str, kind: str = "<u2") -> bytes:
    text = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()


def palette() -> bytes:
    buffer = io.BytesIO()
    Image.new("P", (8, 8)).save(buffer, format="PNG", transparency=0)
    return buffer.getvalue()


REFUSED = {
    "empty": (b"", "empty file"),
    "JPEG": (b"\xff\xd8\xff\xe0", "no PNG, TIFF or NPY"),
    "other channels": (encode_npy(IMAGE[:, :, :3]), "3 channels of uint16, where data.pixels says 4 of uint16"),
    "other bits": (encode_npy(IMAGE.astype(np.uint8)), "4 channels of uint8, where data.pixels says 4 of uint16"),
    "signed": (encode_npy(IMAGE.astype(np.int16)), "4 channels of int16"),
    "grey": (imagecodecs.png_encode(IMAGE[:, :, 0].copy()), "1 channels of uint16"),
    "four axes": (encode_npy(IMAGE[None]), "an array of the shape"),
    "objects": (npy_header("(2, 2, 4)", "|O"), "never unpickled"),
    "a claim of a terabyte": (npy_header("(1000000, 1000000, 4)"), "more bytes than RGB of max_pixels"),
    "many channels": (npy_header("(8000, 8000, 4)"), "more bytes than RGB of max_pixels"),
    "a negative side": (npy_header("(-1, 50, 4)"), "not understood"),
    "no side": (npy_header("(0, 50, 4)"), "an array of the shape"),
    "a codec that may crash": (by_pixel(compression="jpegxr"), "a TIFF compressed by"),
    "white is zero": (tiff(IMAGE, photometric="miniswhite", planarconfig="contig"), "photometric interpretation"),
    "a header that is no literal": (npy_header("10**4"), "not understood"),
    "more than it has": (npy_header("(40, 50, 4)"), "truncated or damaged"),
    "a palette": (palette(), "a PNG with a palette"),
    "a large type": (tiff(np.zeros((20, 20, 4)), planarconfig="contig", compression="zstd"), "4 channels of float64"),
    "bytes behind the end": (ENCODED["png"] + b"x", "bytes follow its end"),
    "many and no pixels": (tiff(np.zeros((2, 3, 20, 20), np.uint16)), "one of channels is needed"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_wanted_is_refused_with_its_reason(name: str) -> None:
    data, reason = REFUSED[name]
    with pytest.raises(BadImageError, match=reason):
        read_channels(data, FOUR)


def test_a_picture_for_people_shows_the_first_three_channels_as_bright_as_can_be() -> None:
    dark = IMAGE // 100
    shown = as_rgb(dark)
    assert (shown.shape, shown.dtype, shown.max()) == ((40, 50, 3), np.uint8, 255)
    np.testing.assert_allclose(shown / 255, dark[:, :, :3] / dark[:, :, :3].max(), atol=1 / 255)
    assert np.ptp(as_rgb(dark[:, :, :1]).astype(int), axis=2).max() == 0


# --- settings ---------------------------------------------------------------------------------------------


def test_the_views_and_networks_of_a_run_are_of_the_datas_pixels() -> None:
    run = load_config("multichannel", assignments=["data.source=x", "data.pixels={channels: 6, bits: 8}"]).resolved()
    wanted = PixelsConfig(channels=6, bits=8)
    views = run.augment
    assert [v.pixels for v in (views.contrastive, views.weak, views.strong, views.evaluation)] == [wanted] * 4
    assert RunConfig().resolved().augment.weak.pixels is None


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (["augment.contrastive.jitter.hue=0.1"], "augment.contrastive.jitter.hue need red, green and blue"),
        (["augment.weak.grayscale=0.2"], "augment.weak.grayscale need red, green and blue"),
        (["augment.weak.pixels={channels: 4}"], "augment.weak.pixels is the data's; set data.pixels instead"),
        (["data.shrink={longest: 100}"], "shrink re-encodes as JPEG"),
        (["data.pixels.bits=12"], "data.pixels.bits"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings: list[str], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        load_config("multichannel", assignments=["data.source=x", *settings])


def test_three_channels_of_16_bits_may_change_their_colours() -> None:
    load_config("images", assignments=["data.source=x", "data.pixels={channels: 3, bits: 16}"])


def test_white_decides_nothing_of_what_is_stored() -> None:
    assert PixelsConfig(white=4095).stored == PixelsConfig()
    for wrong in ({"white": 0}, {"white": 256, "bits": 8}, {"white": 65_536}):
        with pytest.raises(ValidationError):
            PixelsConfig.model_validate(wrong)


def test_the_plan_of_a_run_names_its_views_as_the_run_does() -> None:
    run = load_config("multichannel", assignments=["data.source=x"])
    told = AugmentConfig.model_validate_json(run.stage_strings()["augment"])
    views = resolve_specs(told)
    wired = wiring(run, None)
    assert wired["pretrain"]["views"] == digest(views.pretrain.encoded())
    assert wired["evaluate"]["evaluation"] == digest(views.evaluation.encoded())
    assert views.pretrain.pixels == FOUR


def test_files_that_are_no_images_by_their_names_are_counted_and_npy_has_a_hint(tmp_path: Path) -> None:
    write_images(tmp_path / "images", 4, 16)
    (tmp_path / "images" / "a" / "notes.txt").write_text("x")
    source = open_source(str(tmp_path / "images"))
    assert list_images(source, DataConfig(), tmp_path / "plain").passed == {".npy": 12, ".txt": 1}
    assert list_images(source, DataConfig(pixels=FOUR), tmp_path / "four").passed == {".txt": 1}
    for path in (tmp_path / "images").rglob("*"):
        if path.suffix in {".tif", ".png"}:
            path.unlink()
    with pytest.raises(DataError, match=r"12 \.npy, 1 \.txt.*NPY is read with data\.pixels"):
        list_images(source, DataConfig(), tmp_path / "none")


# --- from a folder to views and predictions ---------------------------------------------------------------

WHITE = {8: 200, 16: 4095}


def write_images(folder: Path, channels: int, bits: int, count: int = 36) -> None:
    """Write images of which the last channel alone tells the class."""
    rng = np.random.default_rng(channels)
    for number in range(count):
        height, width = rng.integers(18, 40, 2)
        values = rng.integers(0, WHITE[bits] // 2, (height, width, channels))
        values[..., -1] = (number % 2) * WHITE[bits] * 2 // 3 + values[..., -1] // 4
        values = values.astype(f"uint{bits}")
        path = folder / "ab"[number % 2] / f"{number:02d}"
        path.parent.mkdir(parents=True, exist_ok=True)
        if number % 3 == 0:
            path.with_suffix(".npy").write_bytes(encode_npy(values))
        elif number % 3 == 1:
            path.with_suffix(".tif").write_bytes(tiff(values, planarconfig="contig" if channels > 1 else None))
        else:
            stored = values.squeeze() if channels <= 4 else values.transpose(2, 0, 1)
            encode = imagecodecs.png_encode if channels <= 4 else partial(tiff, planarconfig="separate")
            path.with_suffix(".png" if channels <= 4 else ".tiff").write_bytes(encode(stored.copy()))


@pytest.fixture(scope="module", params=[(1, 16), (3, 16), (5, 16), (4, 8)], ids=lambda p: f"{p[0]}x{p[1]}")
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Dataset, PixelsConfig]:
    channels, bits = request.param
    folder = tmp_path_factory.mktemp("channels")
    write_images(folder / "images", channels, bits)
    pixels = PixelsConfig(channels=channels, bits=bits, white=WHITE[bits])
    config = DataConfig(pixels=pixels, labels={"per_class": 6})  # type: ignore[arg-type]
    return build_dataset(open_source(str(folder / "images")), config, FileStore(folder / "store"))[0], pixels


def test_images_keep_their_bytes(made: tuple[Dataset, PixelsConfig]) -> None:
    dataset, pixels = made
    assert dataset.manifest.pixels == pixels.stored
    assert dataset.manifest.quarantined == []
    reader = SplitReader(dataset, "unlabelled")
    images = Path(dataset.store.uri.removeprefix("file://")).parent / "images"
    for number in range(len(reader)):
        assert reader.image(number).tobytes() == (images / reader.path(number)).read_bytes()
    assert reader.picture(0).shape[2] == 3


VIEWS: dict[str, Callable[[PixelsConfig], dict[str, Any]]] = {
    "random": lambda pixels: {
        "view": ViewConfig.model_validate({
            "pixels": pixels, "jitter": {"probability": 1.0, "saturation": 0.0, "hue": 0.0},
            "affine": {"rotate": 20}, "blur": {"probability": 1.0}, "erase": {"probability": 0.5},
        })
    },
    "evaluation": lambda pixels: {"evaluation": EvalViewConfig(pixels=pixels)},
}  # fmt: skip


@pytest.mark.parametrize("kind", VIEWS)
def test_both_backends_make_the_same_views(made: tuple[Dataset, PixelsConfig], kind: str) -> None:
    dataset, pixels = made
    reader, cpu = SplitReader(dataset, "unlabelled"), torch.device("cpu")
    batches = []
    for backend in ("dali", "torchvision"):
        spec = ViewSpec(backend=backend, image_size=24, **VIEWS[kind](pixels))  # type: ignore[arg-type]
        stream = ViewStream(reader, [spec, spec], 8, 3, cpu, 2)
        next(stream)
        batches.append(next(ViewStream(reader, [spec, spec], 8, 3, cpu, 2, stream.state())))
    for one, other in zip(batches[0].views, batches[1].views, strict=True):
        assert one.shape == (8, pixels.channels, 24, 24)
        assert one.max() > 0.5
        torch.testing.assert_close(one, other, rtol=0, atol=2e-5)


def test_views_stay_with_their_images_where_a_batch_spans_epochs(made: tuple[Dataset, PixelsConfig]) -> None:
    dataset, pixels = made
    reader, cpu = SplitReader(dataset, "unlabelled"), torch.device("cpu")
    size = 3 * len(reader) + 1
    batches = []
    for backend, threads in (("dali", 8), ("torchvision", 1)):
        spec = ViewSpec(backend=backend, image_size=8, evaluation=EvalViewConfig(pixels=pixels))  # type: ignore[arg-type]
        stream = ViewStream(reader, [spec], size, 0, cpu, threads)
        batches.append([next(stream) for _ in range(3)])
    for one, other in zip(*batches, strict=True):
        assert torch.equal(one.numbers, other.numbers)
        torch.testing.assert_close(one.views[0], other.views[0], rtol=0, atol=2e-5)


@pytest.mark.parametrize("bits", [8, 16])
def test_what_is_brighter_than_white_is_cut_before_it_is_resampled(bits: int) -> None:
    """A cubic filter would draw a dark ring about it otherwise."""
    values = np.full((40, 40, 2), 100, dtype=f"uint{bits}")
    values[18:20, 18:20] = 2**bits - 1
    view = EvalViewConfig(pixels=PixelsConfig(channels=2, bits=bits, white=100))  # type: ignore[arg-type]
    assert evaluation_views([encode_npy(values)], view, 24).min() > 1 - 1e-5


def test_labels_are_audited_by_a_network_for_such_images_alone(
    made: tuple[Dataset, PixelsConfig], tmp_path: Path
) -> None:
    description = Description(
        kind="classifier", network=ResNetConfig(depth=10, width=0.125), classes=["a", "b"], image_size=8
    )
    save(tmp_path / "rgb", build(description), description)
    with pytest.raises(DataError, match="was made for RGB, and the data set's images are"):
        audit_labels(made[0], tmp_path / "rgb", tmp_path / "cache")


def test_a_classifier_learns_and_predicts_by_a_channel_that_rgb_has_not(
    made: tuple[Dataset, PixelsConfig], tmp_path: Path
) -> None:
    dataset, pixels = made
    view = ViewSpec(backend="dali", image_size=24, view=ViewConfig(pixels=pixels))
    evaluation = ViewSpec(backend="dali", image_size=24, evaluation=EvalViewConfig(pixels=pixels))
    config = BaselineConfig.model_validate({
        "network": {"depth": 10, "width": 0.125, "zero_gain": False}, "batch_size": 12, "steps": 30, "seed": 0,
        "optimizer": {"name": "adamw", "learning_rate": 3e-3},
    })  # fmt: skip
    inputs = finetune.Inputs(dataset.uri, view.encoded(), evaluation.encoded(), None)
    finetune.run(config, inputs, finetune.Outputs(tmp_path / "classifier"), new_work(tmp_path, "baseline"))
    predictor, reader = Predictor(tmp_path / "classifier"), SplitReader(dataset, "test")
    found = predictor([reader.image(number).tobytes() for number in range(len(reader))])
    right = sum(
        each.label == reader.classes[label] for each, label in zip(found, reader.labels().tolist(), strict=True)
    )
    assert right >= 0.9 * len(reader)
    with pytest.raises(BadImageError, match=r"data\.pixels says"):
        predictor([encode_npy(np.zeros((20, 20, 7), np.uint16))])
