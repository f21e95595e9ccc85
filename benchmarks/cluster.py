"""A cluster of H100 GPUs: what it can do, what its networks take, and what of it is published or assumed.

Every number that is not counted from the code stands here, with its source or the reason for its value.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

NODE = 8
PEAK = 989.4e12
MEMORY, RESERVED = 80e9, 8e9
NVLINK, INFINIBAND = 370e9, 50e9
IMAGES, IMAGE_BYTES, TAR_BYTES = 1_281_167, 115_000, 2_048
COPY_RATE, STORE_RATE = 4e9, 1e9
#: Tensors of the size of the largest that the backward pass has beside the saved ones.
PASSING = 5
DECODER = 7_000

MLPERF = (
    "https://github.com/mlcommons/training_results_v3.0 (NVIDIA/results/dgxh100{}_ngc23.04_mxnet/resnet/result_0.txt)"
)
EXAMPLES = "https://github.com/NVIDIA/DeepLearningExamples (PyTorch/Classification/ConvNets/resnet50v1.5/README.md)"
NEMO = (
    "https://docs.nvidia.com/nemo-framework/user-guide/latest/MultimodalModels/VisionLanguageFoundation/Vit/Perf.html"
)
SUBQUADRATIC = "https://nvidia-bionemo.github.io/nvSubquadratic/benchmarks.html"
A100_PEAK = 312e12


@dataclass(frozen=True)
class Published:
    """A training rate that others measured: ``images`` a second on ``gpus``, of a network with ``macs`` a view."""

    what: str
    macs: float
    gpus: int
    images: float
    source: str
    peak: float = PEAK

    @property
    def share(self) -> float:
        """Share of the peak FLOP/s that the products alone take: 3 forward passes of 2 FLOPs a multiply-add."""
        return 6 * self.macs * self.images / self.gpus / self.peak


def published(resnet50: float, giant: float) -> list[Published]:
    """Return the published rates; multiply-adds are of our ResNet-50 and timm's ViT-g/14."""
    mlperf = "ResNet-50, MLPerf 3.0, MXNet, fused, H100"
    return [
        Published(mlperf, resnet50, 8, 56_050, MLPERF.format("")),
        Published(mlperf, resnet50, 64, 294_700, MLPERF.format("_n8")),
        # the rates of single epochs in the log of 512 GPUs are no rates; four epochs and a test took 2.478 s
        Published(mlperf, resnet50, 512, 4 * IMAGES / 2.478, MLPERF.format("_n64")),
        Published("ResNet-50, PyTorch, A100", resnet50, 1, 2_470, EXAMPLES, A100_PEAK),
        Published("ResNet-50, PyTorch, A100", resnet50, 8, 16_621, EXAMPLES, A100_PEAK),
        Published("ViT-g/14, NeMo, H100", giant, 8, 1_428, NEMO),
        Published("ViT-g/14, NeMo, H100", giant, 128, 21_561, NEMO),
    ]


@dataclass(frozen=True)
class Scenario:
    """What is assumed where it is not known.

    Attributes:
        name: of the scenario: the cost that it gives.
        share: kind of network → share of the peak FLOP/s.
        latency: seconds that a small collective takes at least.
        ring: small collectives take what NCCL's own model says, where that is more.
        launch: seconds to start an operation.
        between: bytes a second and GPU of large collectives between nodes.
    """

    name: str
    share: dict[str, float]
    latency: float
    ring: bool
    launch: float
    between: float

    def gather(self, ranks: int) -> float:
        """Seconds of a small all-gather."""
        return max(self.latency, ring_gather(ranks)) if self.ring else self.latency

    def reduce(self, size: float, ranks: int) -> float:
        """Seconds of an all-reduce of ``size`` bytes, few enough for a tree."""
        least = max(self.latency, tree_reduce(ranks)) if self.ring else self.latency
        return least + ring_all_reduce(size, ranks) / self.bandwidth(ranks)

    def bandwidth(self, ranks: int) -> float:
        """Bytes a second and GPU of a large collective."""
        return NVLINK if ranks <= NODE else self.between


SCENARIOS = {
    "low": Scenario("low", {"narrow": 0.17, "wide": 0.35, "vit": 0.30}, 20e-6, False, 0.0, NVLINK),
    "expected": Scenario("expected", {"narrow": 0.10, "wide": 0.25, "vit": 0.22}, 20e-6, True, 5e-6, NVLINK),
    "high": Scenario("high", {"narrow": 0.07, "wide": 0.12, "vit": 0.07}, 40e-6, True, 6e-6, INFINIBAND),
}

ASSUMPTIONS = [
    ("peak of an H100 (SXM) in bfloat16", f"{PEAK / 1e12:.0f} TFLOP/s", "https://glennklockwood.com/garden/processors/h100"),
    ("peak of an A100, for the shares above", f"{A100_PEAK / 1e12:.0f} TFLOP/s", "the usual figure; not looked up"),
    ("memory of a GPU; of it kept free", f"{MEMORY / 1e9:.0f} GB; {RESERVED / 1e9:.0f} GB",
     "80 GB as there; what is kept free for CUDA, NCCL, cuDNN's workspaces, DALI and fragments is assumed"),
    ("share of the peak, ResNet-50", "17 / 10 / 7%",
     "measured by MLPerf on 8 and on 512 GPUs; 7% assumed: our norm, ReLU and sums are not fused"),
    ("share of the peak, ResNet-152 3x+SK", "35 / 25 / 12%",
     "assumed: nothing published; it does 4.9 times the FLOPs of ResNet-50 for each byte that it keeps"),
    ("share of the peak, ViT", "30 / 22 / 7%",
     f"NeMo's above; a small ViT compiled (22%) and not (7%): {SUBQUADRATIC}"),
    ("bytes a second of large collectives, in a node", f"{NVLINK / 1e9:.0f} GB/s",
     "https://github.com/NVIDIA/nccl-tests/issues/212 (NCCL's author, ring)"),
    ("the same between nodes, a GPU", f"{NVLINK / 1e9:.0f} / {NVLINK / 1e9:.0f} / {INFINIBAND / 1e9:.0f} GB/s",
     "8 x 400 Gb/s InfiniBand a node (https://github.com/mlcommons/inference_results_v3.1, "
     "closed/Dell/systems/XE9680_H100_SXM_80GBx8_TRT.json), all in use, or a ring through one; assumed"),
    ("a small collective", "20 µs / NCCL's model, at least 20 µs / the same, at least 40 µs",
     "latencies of NCCL's rings and trees: https://github.com/NVIDIA/nccl (src/graph/tuning.cc); 20 and 40 µs assumed"),
    ("starting an operation", "0 / 5 / 6 µs",
     "4 to 6 µs: https://susun-blog.com/blog/pegainfer-3-cuda-graph; 0 with CUDA graphs"),
    ("backward pass", "twice the forward pass", "the usual count: gradients of inputs and of weights"),
    ("overlap", "the gradients' all-reduce with the backward pass; nothing else", "as DistributedDataParallel does"),
    ("passing tensors of the backward pass", f"{PASSING} of the largest",
     "batch norm over ranks: the gradient, and two products in float32; for ViT assumed"),
    ("image", f"{IMAGE_BYTES / 1e3:.0f} kB, {TAR_BYTES / 1e3:.1f} kB more in a shard",
     "ImageNet has about 150 GB: "
     "https://developer.nvidia.com/blog/loading-data-fast-with-dali-and-new-jpeg-decoder-in-a100/; "
     "two headers, the json member and padding"),
    ("decoding on a GPU (A100)", f"about {DECODER:,} images/s",
     "https://github.com/NVIDIA/DALI/issues/5362, which quotes NVIDIA's article; none found for H100"),
    ("copying a checkpoint to the CPU, one process", f"{COPY_RATE / 1e9:.0f} GB/s", "assumed; memory is not pinned"),
    ("writing to the store, one process", f"{STORE_RATE / 1e9:.0f} GB/s", "assumed"),
]  # fmt: skip


def ring_all_reduce(size: float, ranks: int) -> float:
    """Return the bytes that a rank sends in a ring all-reduce of ``size`` bytes: 2 (n - 1)/n of them."""
    return 2 * (ranks - 1) / ranks * size


def fully_sharded(parameters: float, ranks: int) -> float:
    """Return the bytes that a rank sends a step: weights gathered twice, gradients scattered, all in float32."""
    return (ranks - 1) / ranks * (2 * 4 + 4) * parameters


def ring_gather(ranks: int) -> float:
    """Return the seconds of a small all-gather by NCCL's model: a ring, so they grow with the number of ranks."""
    nodes = -(-ranks // NODE)
    inside = 0.47 * (1.8 if nodes > 1 else 1)
    return (3.6 + (ranks - nodes) * inside + (nodes - 1) * 2.7) * 1e-6


def tree_reduce(ranks: int) -> float:
    """Return the seconds of a small all-reduce by NCCL's model: a tree, so they grow with the nodes' logarithm."""
    nodes = -(-ranks // NODE)
    inside = 0.52 * (1.8 if nodes > 1 else 1)
    return (4.4 + 2 * ((ranks // nodes - 1) * inside + math.floor(math.log2(nodes)) * 5.0)) * 1e-6


def cache_misses(share: float) -> float:
    """Return the share of shards that are fetched again each epoch, of a cache that holds ``share`` of them.

    The least recently used goes first, and each epoch has the shards in another order. Between two uses of a shard
    that stand at u and v of their epochs (each from 0 to 1) lie 1 - u + uv of all shards, and it is still there where
    that is below ``share``: a probability of 1 - a + a ln a with a = 1 - share.
    """
    absent = 1 - min(share, 1.0)
    return absent - absent * math.log(absent) if absent > 0 else 0.0
