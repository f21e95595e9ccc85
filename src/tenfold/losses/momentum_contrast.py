"""Contrast with a memory of past views, after MoCo (He et al. 2020), as SimCLRv2 uses it (section 2)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tenfold.losses.nt_xent import NTXent, unit
from tenfold.ranks import all_gather, rank


def momentum_contrast(queries: Tensor, keys: Tensor, memory: Tensor, temperature: float) -> NTXent:
    r"""Cross-entropy of finding each query's key among all keys of the batch and those of the memory.

    .. math:: \ell_i = -\log \frac{\exp(q_i \cdot k_i/\tau)}
              {\sum_j \exp(q_i \cdot k_j/\tau) + \sum_m \exp(q_i \cdot u_m/\tau)}

    Args:
        queries: projections (n, d) of one view by the encoder that is trained.
        keys: projections (n, d) of the other view by the momentum encoder, row by row of the same images; with
            several ranks all ranks' keys take part. No gradient flows into them.
        memory: keys (K, d) of past batches, of length 1.
        temperature: tau.

    The loss is the mean over the queries. The official repository holds no code for this; its authors say that
    the negatives come from the momentum encoder, of the current and past batches, as in MoCo.
    """
    queries, keys = unit(queries), all_gather(unit(keys.detach()))
    target = torch.arange(len(queries), device=queries.device) + rank() * len(queries)
    logits = torch.cat([queries @ keys.T, queries @ memory.T], 1) / temperature
    return NTXent(F.cross_entropy(logits, target), (logits.argmax(1) == target).float().mean())
