"""One measurement of lightly's training step in the form of its SimCLR example, in a process of its own.

PyTorch Lightning's trainer, lightly's views and loss, a DataLoader over images that lie decoded in memory, as
torchvision's CIFAR-10 holds them, and our network, so that both sides train the same. The only argument is a
:class:`Peer` as JSON; the last line written is the result.
"""

from __future__ import annotations

import itertools
import json
import logging
import sys
import time
import warnings
from dataclasses import asdict, dataclass
from typing import Any

from steps import BATCH, LEARNING_RATE, MOMENTUM, SIZE, TEMPERATURE, network


@dataclass(frozen=True)
class Peer:
    """What is measured.

    Attributes:
        images: a NumPy file of (N, 32, 32, 3) bytes.
        width: multiplier of the channel counts.
        workers: of the DataLoader.
        channels_last: network and views lie in memory as ours do; the example leaves them as they come.
        warm: steps ahead of those that are timed.
        timed: steps that are timed.
    """

    images: str
    width: float = 0.25
    workers: int = 0
    channels_last: bool = False
    warm: int = 10
    timed: int = 40

    def encoded(self) -> str:
        """Return it as JSON."""
        return json.dumps(asdict(self))


def measure(peer: Peer) -> dict[str, Any]:
    """Train, and return views a second."""
    import numpy as np
    import pytorch_lightning
    import torch
    from lightly.loss import NTXentLoss
    from lightly.transforms import SimCLRTransform
    from PIL import Image
    from torch.utils.data import DataLoader, Dataset

    images, transform = np.load(peer.images), SimCLRTransform(input_size=SIZE)
    layout = torch.channels_last if peer.channels_last else torch.contiguous_format
    times: list[float] = []

    class Images(Dataset):  # type: ignore[type-arg]
        def __len__(self) -> int:
            return len(images)

        def __getitem__(self, number: int) -> Any:
            return transform(Image.fromarray(images[number]))

    class SimCLR(pytorch_lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = network(peer.width).to(memory_format=layout)
            self.criterion = NTXentLoss(temperature=TEMPERATURE)

        def training_step(self, batch: Any, number: int) -> Any:
            times.append(time.perf_counter())
            first, second = (view.contiguous(memory_format=layout) for view in batch)
            return self.criterion(self.model(first), self.model(second))

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM)

    trainer = pytorch_lightning.Trainer(
        accelerator="cpu", devices=1, max_steps=peer.warm + peer.timed + 1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    loader = DataLoader(Images(), batch_size=BATCH, shuffle=True, drop_last=True, num_workers=peer.workers)
    trainer.fit(SimCLR(), loader)
    times = times[peer.warm :]
    took = sorted(after - before for before, after in itertools.pairwise(times))
    return {"views_per_second": 2 * BATCH * peer.timed / (times[-1] - times[0]), "median_step": took[len(took) // 2]}


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    print(json.dumps(measure(Peer(**json.loads(sys.argv[1])))), flush=True)
