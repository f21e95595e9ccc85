"""Where the time of a pretraining step goes, and how far its convolutions are from what the processor can do.

torch's profiler over steps of the training engine's own replica and optimizer on one batch that lies in memory, by
operators' own time on the CPU. The convolutions' operations are counted by torch's flop counter; beside them stand the
fastest large matrix product of the same precision, and the fastest copy of memory, both measured here. Batch norm's and
ReLU's bytes are the least that their passes over the activations move: batch norm reads twice and writes once forward,
and backward reads two arrays twice and writes one; ReLU reads and writes one, and backward reads two and writes one.

``--write docs/profile.md`` puts the tables between that document's markers; the figures are in results/profile.json.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from record import RESULTS, current_commit, write_result
from steps import BATCH, LEARNING_RATE, MOMENTUM, SIZE, TEMPERATURE, THREADS, network

from tenfold.environment import allocator

WARM, TIMED = 5, 10
WIDTHS, PRECISIONS = {"16": 0.25, "32": 0.5}, ("bfloat16", "float32")
#: Group → what the names of its operators begin with; the first that fits counts.
GROUPS = {
    "convolutions, forward": ("aten::mkldnn_convolution", "aten::_slow_conv", "aten::thnn_conv"),
    "convolutions, backward": ("aten::convolution_backward", "aten::mkldnn_convolution_backward"),
    "batch norm": ("aten::native_batch_norm", "aten::_native_batch_norm", "aten::batch_norm"),
    "ReLU": ("aten::relu", "aten::clamp_min", "aten::threshold_backward"),
    "NT-Xent": ("nt_xent",),
    "optimizer": ("aten::_foreach", "Optimizer"),
    "copies and casts": ("aten::copy_", "aten::_to_copy", "aten::clone", "aten::contiguous", "aten::cat"),
    "additions of shortcuts and gradients": ("aten::add",),
}
REST = "rest"


def step_of(width: float, precision: str) -> tuple[Callable[[], Any], Any]:
    """Return a training step on one batch, and the network that it trains."""
    import torch

    from tenfold.augment.stream import Batch
    from tenfold.config import OptimizerConfig, PretrainConfig
    from tenfold.losses import nt_xent as losses
    from tenfold.optim.build import build_optimizer
    from tenfold.training import objectives
    from tenfold.training.replica import Replica
    from tenfold.training.way import Way

    plain = losses.nt_xent

    def named(*given: Any) -> Any:
        with torch.profiler.record_function("nt_xent"):
            return plain(*given)

    objectives.nt_xent = named  # type: ignore[assignment]
    optimizer = OptimizerConfig(name="sgd", learning_rate=LEARNING_RATE, momentum=MOMENTUM, weight_decay=0.0)
    config = PretrainConfig.model_validate({"epochs": 1, "batch_size": BATCH, "optimizer": optimizer})
    objective = objectives.Contrastive(network(width), TEMPERATURE)
    replica = Replica(objective, config, torch.device("cpu"))
    replica.take(Way(precision, compiled=False, threads=THREADS))
    update = build_optimizer(config.optimizer, objective.trained(), BATCH)
    parameters = [p for group in update.param_groups for p in group["params"]]
    batch = {"train": Batch([torch.rand(BATCH, 3, SIZE, SIZE) for _ in range(2)], torch.arange(BATCH))}

    def step() -> None:
        update.zero_grad(set_to_none=True)
        replica.backward(batch)
        replica.gradient_norm(parameters)
        update.step()
        replica.follow()

    return step, objective.model


def group_of(event: Any) -> str:
    """Return the group that an operator's time belongs to; what runs for the loss counts as the loss's."""
    above = event.cpu_parent
    while above is not None:
        if "nt_xent" in above.name.lower() or "ntxent" in above.name.lower():
            return "NT-Xent"
        if above.name.startswith("Optimizer.step"):
            return "optimizer"
        above = above.cpu_parent
    return next((group for group, names in GROUPS.items() if event.name.startswith(names)), REST)


def profile(width: float, precision: str) -> dict[str, Any]:
    """Return the seconds of a step by groups of operators, and the convolutions' operations and the passes' bytes."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    step, model = step_of(width, precision)
    for _ in range(WARM):
        step()
    start = time.perf_counter()
    for _ in range(TIMED):
        step()
    seconds = (time.perf_counter() - start) / TIMED
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        for _ in range(TIMED):
            step()
    times: dict[str, float] = dict.fromkeys([*GROUPS, REST], 0.0)
    names: dict[str, float] = {}
    for event in profiler.events():
        own = event.self_cpu_time_total / 1e6 / TIMED
        times[group_of(event)] += own
        names[event.name] = names.get(event.name, 0.0) + own
    with FlopCounterMode(display=False) as counter:
        step()
    counts = counter.get_flop_counts()["Global"]
    convolutions = sum(count for operator, count in counts.items() if "convolution" in str(operator))
    return {
        "step_seconds": seconds, "profiled_seconds": sum(times.values()), "groups": times,
        "operators": dict(sorted(names.items(), key=lambda pair: -pair[1])[:20]),
        "convolution_flop": convolutions, "moved_bytes": moved(model, precision),
    }  # fmt: skip


def moved(model: Any, precision: str) -> dict[str, int]:
    """Return the bytes that the batch norms and the ReLUs of a step move at least."""
    import torch

    from tenfold.models.norm import BatchNorm
    from tenfold.models.resnet import Block

    width = 2 if precision == "bfloat16" else 4
    found = {"batch norm": 0, "ReLU": 0}

    def count(name: str, passes: int) -> Callable[[Any, Any, Any], None]:
        def hook(_module: Any, _given: Any, output: Any) -> None:
            found[name] += passes * width * output.numel()

        return hook

    for module in model.modules():
        if isinstance(module, BatchNorm):
            module.register_forward_hook(count("batch norm", 8))
        if isinstance(module, (torch.nn.ReLU, Block)):  # a block ends in one
            module.register_forward_hook(count("ReLU", 5))
    with torch.no_grad():
        model(torch.rand(2 * BATCH, 3, SIZE, SIZE).contiguous(memory_format=torch.channels_last))
    return found


def limits() -> dict[str, float]:
    """Return the processor's fastest large products (operations a second) and copy (bytes a second, both ways)."""
    import torch

    found = {}
    for precision in PRECISIONS:
        best = 0.0
        for side in (2048, 4096):
            a, b = (torch.randn(side, side).to(getattr(torch, precision)) for _ in range(2))
            best = max(best, 2 * side**3 / fastest(lambda a=a, b=b: torch.mm(a, b)))
        found[precision] = best
    source = torch.ones(64 << 20)  # 256 MiB, more than any cache
    target = torch.empty_like(source)
    found["bytes_per_second"] = 2 * source.nbytes / fastest(lambda: target.copy_(source))
    return found


def fastest(call: Callable[[], Any]) -> float:
    """Return the seconds of the fastest of some calls."""
    took = []
    for _ in range(6):
        start = time.perf_counter()
        call()
        took.append(time.perf_counter() - start)
    return min(took[1:])


# --- what is told ----------------------------------------------------------------------------------------


def tables(result: dict[str, Any]) -> dict[str, str]:
    """Return the document's tables by the names of their markers."""
    runs, limit = result["runs"], result["limits"]
    titles = [f"{name.partition('_')[0]} channels, {name.partition('_')[2]}" for name in runs]
    shares = [
        [group, *(f"{100 * each['groups'][group] / each['profiled_seconds']:.1f}%" for each in runs.values())]
        for group in next(iter(runs.values()))["groups"]
    ]
    shares.append(["a step, ms", *(f"{1000 * each['step_seconds']:.0f}" for each in runs.values())])
    rows = []
    for title, (name, each) in zip(titles, runs.items(), strict=True):
        spent = sum(each["groups"][f"convolutions, {way}"] for way in ("forward", "backward"))
        speed, peak = each["convolution_flop"] / spent, limit[name.partition("_")[2]]
        passes = [
            f"{each['moved_bytes'][group] / each['groups'][group] / 1e9:.1f}" if each["groups"][group] else "–"
            for group in ("batch norm", "ReLU")
        ]
        rows.append([title, f"{each['convolution_flop'] / 1e9:.0f}", f"{speed / 1e9:.0f}", f"{peak / 1e9:.0f}",
                     f"{100 * speed / peak:.0f}%", *passes, f"{limit['bytes_per_second'] / 1e9:.1f}"])  # fmt: skip
    head = ["network", "GFLOP a step", "GFLOP/s", "product's", "share", "batch norm, GB/s", "ReLU, GB/s", "copy, GB/s"]
    return {"shares": table(["share of the operators' own time", *titles], shares), "limits": table(head, rows)}


def table(head: list[str], rows: list[list[str]]) -> str:
    """Return a table in Markdown; all columns but the first are numbers."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def written(document: str, made: dict[str, str]) -> str:
    """Return a document with the tables between its markers ``<!-- profile:NAME -->`` and ``<!-- end -->``."""
    pattern = re.compile(r"(<!-- profile:(\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
    return pattern.sub(lambda found: f"{found[1]}{made[found[2]]}\n{found[3]}", document)


def measure(*arguments: str) -> Any:
    """Run a measurement in a process of its own, with the environment that our stages give themselves."""
    variables = {"OMP_NUM_THREADS": str(THREADS), "OMP_WAIT_POLICY": "PASSIVE", **allocator()}
    command = [sys.executable, __file__, "--one", *arguments]
    found = subprocess.run(command, env={**os.environ, **variables}, check=True, capture_output=True, text=True)
    return json.loads(found.stdout.splitlines()[-1])


def main() -> None:
    """Profile, and write results/profile.json and the document's tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path, help="document whose tables are made anew")
    parser.add_argument("--one", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        width, *precision = options.one
        print(json.dumps(profile(float(width), *precision) if precision else limits()))
        return
    commit = current_commit()
    runs = {f"{name}_{kind}": measure(str(width), kind) for name, width in WIDTHS.items() for kind in PRECISIONS}
    result: dict[str, Any] = {"what": __doc__, "threads": THREADS, "limits": measure("limits"), "runs": runs}
    path = write_result("profile", result, commit)
    made = tables(result)
    if options.write:
        options.write.write_text(written(options.write.read_text(), made))
    print(*made.values(), f"wrote {path.relative_to(RESULTS.parent.parent)}", sep="\n\n")


if __name__ == "__main__":
    main()
