"""What a training stage leaves behind."""

from __future__ import annotations

import json
from pathlib import Path

from torch import nn

from tenfold.config import Description
from tenfold.models.saved import save
from tenfold.ranks import rank
from tenfold.training.state import History
from tenfold.work import Work


def save_result(folder: Path, model: nn.Module, description: Description, history: History, work: Work) -> None:
    """Write the network and its curves into ``folder`` and to MLflow; all ranks must ask, and the first alone writes.

    Args:
        folder: the stage's output, by whose name MLflow knows it.
        model: what the training yields.
        description: of it.
        history: the curves.
        work: the stage's.
    """
    save(folder, model, description)
    if rank() == 0:
        (folder / "history.json").write_text(json.dumps(history))
        work.tracker.artifact(folder, folder.name)
