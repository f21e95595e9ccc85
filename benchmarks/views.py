"""How far each view operation is from the official code's.

The oracle holds what TensorFlow computed on fixed images (``augment_ops.npz``; the one in tests/oracle unless
given). For each operation and backend the mean and the largest absolute difference of pixels in [0, 1] are taken over
all of its parameters, and for the crops the quantiles of their share of the area. Writes ``results/views.json``;
docs/views.md explains it.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nvidia.dali import fn, pipeline_def
from record import current_commit, write_result

from tenfold.augment import color, fused
from tenfold.augment import dali as graph
from tenfold.augment.draws import parameters, uniforms
from tenfold.augment.evaluation import evaluation_view
from tenfold.config import CropConfig, EvalViewConfig, ViewConfig

Operation = Callable[[Any, float], Any]
TORCH: dict[str, Operation] = {
    "bright_mul": color.brightness, "contrast": color.contrast, "saturation": color.saturation, "hue": color.hue,
    "gray": lambda image, _: color.grey(image),
    "saturation_matrix": lambda image, factor: color.turn_chroma(image, factor, 0.0),
    "hue_matrix": lambda image, turn: color.turn_chroma(image, 1.0, turn),
    "blur_k22": lambda image, sigma: color.blur(image, sigma, 11),
    "blur_k6": lambda image, sigma: color.blur(image, sigma, 3),
}  # fmt: skip
#: The compiled ones change (3, 64, 64) in place.
FUSED: dict[str, Callable[[Any, float], None]] = {
    "bright_mul": lambda image, factor: fused.scale(image.reshape(3, -1), np.float32(factor), np.float32(0)),
    "contrast": lambda image, factor: fused.contrast(image.reshape(3, -1), np.float32(factor), image.shape[1]),
    "saturation": lambda image, factor: fused.saturate(image.reshape(3, -1), np.float32(factor)),
    "hue": lambda image, turn: fused.turn(image.reshape(3, -1), np.float32(turn)),
    "gray": lambda image, _: fused.grey(image.reshape(3, -1)),
    "saturation_matrix": lambda image, factor: fused.mix(image.reshape(3, -1), fused.chroma_matrix(factor, 0.0)),
    "hue_matrix": lambda image, turn: fused.mix(image.reshape(3, -1), fused.chroma_matrix(1.0, turn)),
    "blur_k22": lambda image, sigma: fused.blur(image, np.float32(sigma), 11),
    "blur_k6": lambda image, sigma: fused.blur(image, np.float32(sigma), 3),
}
DALI: dict[str, Operation] = {
    "bright_mul": graph.brightness, "contrast": graph.contrast, "saturation": graph.saturation, "hue": graph.hue,
    "gray": lambda image, _: graph.grey(image),
    "saturation_matrix": lambda image, factor: fn.hsv(image, saturation=factor),
    "hue_matrix": lambda image, turn: fn.hsv(image, hue=360.0 * turn),
    "blur_k22": lambda image, sigma: graph.gaussian_blur(image, sigma, 11),
    "blur_k6": lambda image, sigma: graph.gaussian_blur(image, sigma, 3),
}  # fmt: skip


def cases(oracle: Any, operation: str) -> list[tuple[float, Any]]:
    """Return parameter and expected image of each of an operation's arrays."""
    if operation == "gray":
        return [(0.0, oracle["gray"])]
    operation = operation.removesuffix("_matrix")
    names = [name for name in oracle.files if name.startswith(f"{operation}_")]
    return [(float(name.rpartition("_")[2].removeprefix("s")), oracle[name]) for name in names]


def by_torch(operation: str, image: Any, value: float) -> Any:
    """Return what the torch backend makes of a float image (H, W, 3)."""
    made = TORCH[operation](torch.from_numpy(image).permute(2, 0, 1), value)
    return made.permute(1, 2, 0).numpy()


def by_fused(operation: str, image: Any, value: float) -> Any:
    """Return what the compiled operation makes of the same."""
    planes = np.ascontiguousarray(image.transpose(2, 0, 1))
    FUSED[operation](planes, value)
    return planes.transpose(1, 2, 0)


def by_dali(operation: str, image: Any, value: float) -> Any:
    """Return what DALI's graph makes of the same image, rounded to grey levels before."""

    @pipeline_def
    def pipe() -> Any:
        data = fn.external_source(source=lambda _: np.round(image * 255).astype(np.uint8), batch=False, layout="HWC")
        return DALI[operation](data, value)

    built = pipe(batch_size=1, num_threads=1, device_id=None)
    built.build()
    (out,) = built.run()
    return np.asarray(out[0]) / 255


def dali_evaluation(image: Any, size: int) -> Any:
    """Return DALI's evaluation view (size, size, 3) of a uint8 image."""

    @pipeline_def
    def pipe() -> Any:
        data = fn.external_source(source=lambda _: image, batch=False, layout="HWC")
        return graph.evaluation(data, data.shape(), EvalViewConfig(), size)

    built = pipe(batch_size=1, num_threads=1, device_id=None)
    built.build()
    (out,) = built.run()
    return np.asarray(out[0]).transpose(1, 2, 0)


def drawn_crops(crop: CropConfig, count: int) -> Any:
    """Return the parameters of ``count`` crops."""
    return parameters(ViewConfig(crop=crop), 224, uniforms(0, np.arange(count), 0))


def boxes(crop: CropConfig, count: int, height: int, width: int) -> Any:
    """Return crops (count, 4) as top, left, height and width."""
    window = fused.window_of(ViewConfig(crop=crop), None)
    return np.array([fused.box(height, width, *window, p) for p in drawn_crops(crop, count)])


def dali_boxes(crop: CropConfig, count: int, height: int, width: int) -> Any:
    """Return the same crops as DALI's graph computes them."""
    drawn, draw = iter(drawn_crops(crop, count)), graph.height_box if crop.sampling == "height" else graph.area_box

    @pipeline_def
    def pipe() -> Any:
        shape = fn.external_source(source=lambda _: np.array([height, width, 3]), batch=False)
        return draw(shape, crop, fn.external_source(source=lambda _: next(drawn), batch=False, ndim=1))

    built = pipe(batch_size=500, num_threads=1, device_id=None, prefetch_queue_depth=1)
    built.build()
    parts = [np.concatenate([part.as_array() for part in built.run()], 1) for _ in range(count // 500)]
    return np.concatenate(parts)


def quantiles(boxes: Any, height: int, width: int) -> dict[str, float]:
    """Return quantiles of the crops' share of the area, and of their aspect ratio."""
    share, aspect = boxes[:, 2] * boxes[:, 3] / (height * width), boxes[:, 3] / boxes[:, 2]
    return {f"area_q{q}": float(np.quantile(share, q / 100)) for q in (10, 25, 50, 75, 90)} | {
        f"aspect_q{q}": float(np.quantile(aspect, q / 100)) for q in (10, 50, 90)
    }


def measure(oracle: Any) -> dict[str, Any]:
    """Return every operation's deviation, by backend."""
    rows: dict[str, Any] = {}
    for operation in TORCH:
        for backend, apply in (("torch", by_torch), ("fused", by_fused), ("dali", by_dali)):
            found = [np.abs(apply(operation, oracle["x64"], v) - e) for v, e in cases(oracle, operation)]
            rows[f"{operation}.{backend}"] = {
                "mean": float(np.mean([d.mean() for d in found])), "max": float(max(d.max() for d in found)),
                "cases": len(found),
            }  # fmt: skip
    for size in (size for size in (224, 96) if f"eval0_{size}" in oracle.files):
        for backend in ("torch", "dali"):
            found = []
            for number in range(5):
                image, expected = oracle[f"img{number}"], oracle[f"eval{number}_{size}"].astype(np.float32)
                if backend == "dali":
                    made = dali_evaluation(image, size)
                else:
                    made = evaluation_view(image, EvalViewConfig(), size).permute(1, 2, 0).numpy()
                found.append(np.abs(made - expected))
            rows[f"evaluation_{size}.{backend}"] = {
                "mean": float(np.mean([d.mean() for d in found])), "max": float(max(d.max() for d in found)),
                "cases": len(found),
            }  # fmt: skip
    even = CropConfig(sampling="area", area=(0.08, 1.0))
    crops = {
        "official": quantiles(oracle["crop_boxes_300x400_y_x_h_w"].astype(np.int64), 300, 400),
        "height": quantiles(boxes(CropConfig(), 4000, 300, 400), 300, 400),
        "area": quantiles(boxes(even, 4000, 300, 400), 300, 400),
    }  # fmt: skip
    return {"deviations": rows, "crops": crops}


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(__file__).parents[1] / "tests" / "oracle"
    parser.add_argument("--oracle", type=Path, default=default, help="folder of augment_ops.npz")
    options = parser.parse_args()
    commit = current_commit()
    with np.load(options.oracle / "augment_ops.npz") as oracle:
        result = measure(oracle)
    write_result("views", {"what": __doc__, **result}, commit)
    for name, row in result["deviations"].items():
        print(f"{name:28s} mean {row['mean']:.5f}  max {row['max']:.4f}")
    for name, row in result["crops"].items():
        print(f"{name:22s}", {key: round(value, 3) for key, value in row.items()})


if __name__ == "__main__":
    main()
