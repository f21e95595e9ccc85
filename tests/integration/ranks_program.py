"""A few SimCLR steps on one of several ranks; started by test_ranks.py once a rank."""

from __future__ import annotations

import argparse

import torch
import torch.distributed as dist

from tenfold.config import Description, HeadConfig, Length, OptimizerConfig, ResNetConfig
from tenfold.losses.nt_xent import nt_xent
from tenfold.models.saved import build
from tenfold.optim.build import build_optimizer, peak_rate, rate_at
from tenfold.ranks import all_gather

IMAGES, STEPS = 32, 20


def main() -> None:
    """Train and save losses, first gradients and weights."""
    parser = argparse.ArgumentParser()
    for name in ("--rank", "--world", "--steps"):
        parser.add_argument(name, type=int)
    for name in ("--rendezvous", "--output", "--dtype"):
        parser.add_argument(name)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.world > 1:
        dist.init_process_group(
            "gloo", init_method=f"file://{options.rendezvous}", rank=options.rank, world_size=options.world
        )
    dtype = getattr(torch, options.dtype)
    torch.manual_seed(0)
    network = ResNetConfig(depth=10, width=0.25)
    model = build(Description(kind="simclr", network=network, head=HeadConfig(features=16), image_size=16)).to(dtype)
    model.train()
    # SimCLR's own: 0.3 · B / 256, weight decay 1e-6
    config = OptimizerConfig(name="lars", learning_rate=0.3, scaling="linear", weight_decay=1e-6)
    optimizer, length = build_optimizer(config, [model], IMAGES), Length(STEPS, 2)
    share = IMAGES // options.world
    mine = slice(options.rank * share, (options.rank + 1) * share)
    losses, gradients = [], {}
    wide = {"dtype": torch.float64}
    images = torch.rand(IMAGES, 3, 16, 16, generator=torch.Generator().manual_seed(99), **wide)
    for step in range(options.steps):
        views = images + 0.3 * torch.randn(2, *images.shape, generator=torch.Generator().manual_seed(step), **wide)
        views = views.to(dtype)
        for group in optimizer.param_groups:
            group["lr"] = rate_at(step + 1, length, peak_rate(config, IMAGES))
        optimizer.zero_grad()
        first, second = model(torch.cat([views[0, mine], views[1, mine]])).chunk(2)
        loss = nt_xent(first, second, 0.1).loss
        loss.backward()
        for parameter in model.parameters():
            if parameter.grad is not None and options.world > 1:
                dist.all_reduce(parameter.grad)
                parameter.grad /= options.world
        if step == 0:
            gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        optimizer.step()
        losses.append(all_gather(loss.reshape(1)).mean())
    if options.rank == 0:
        torch.save(
            {"losses": torch.stack(losses), "weights": model.state_dict(), "gradients": gradients}, options.output
        )
    if options.world > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
