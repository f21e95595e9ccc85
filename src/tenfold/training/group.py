"""The process group of a distributed training."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from tenfold.environment import Environment


@contextmanager
def process_group(environment: Environment) -> Iterator[None]:
    """Join the ranks that torchrun started: gloo for tensors on CPUs, NCCL for those on GPUs.

    A rank that fails leaves the group as it is: taking it down may wait for ranks that wait for this one.
    """
    if "RANK" not in os.environ:
        yield
        return
    on_gpu = environment.device != "cpu" and torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    # torchrun's store outlives the ranks: what an earlier start left there would lead to processes that are gone
    store, rank, size = next(iter(rendezvous("env://")))
    store = PrefixStore(f"start-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    backend = "cpu:gloo,cuda:nccl" if on_gpu else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=size)
    yield
    dist.barrier()
    dist.destroy_process_group()
