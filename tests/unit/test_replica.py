"""One rank's gradients: parts of a batch add up to the whole, and computing again changes nothing."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from tenfold.augment.stream import Batch
from tenfold.config import TrainConfig
from tenfold.errors import ConfigError
from tenfold.models.heads import Classifier, ProjectionHead, SimCLRModel
from tenfold.models.norm import BatchNorm
from tenfold.models.resnet import ResNet
from tenfold.ranks import share
from tenfold.training.objectives import Contrastive, Objective, Supervised
from tenfold.training.replica import Replica
from tenfold.training.way import Way

CPU = torch.device("cpu")
LABELS = torch.tensor([0, 1, 2, 0, 1, 2, 0, 0])


def batch(views: int = 1) -> Batch:
    generator = torch.Generator().manual_seed(0)
    return Batch([torch.rand(8, 3, 16, 16, generator=generator) for _ in range(views)], torch.arange(8))


def supervised() -> Supervised:
    torch.manual_seed(0)
    model = Classifier(ResNet(10, 0.125), None, 0, 3)
    nn.init.normal_(model.linear.weight)
    return Supervised(model, LABELS, 0.1, 0.0)


def replica(objective: Objective, *, fixed: bool = False, **values: Any) -> Replica:
    """Return a rank's copy; ``fixed``: batch norms normalise by their averages, so that images do not mix."""
    made = Replica(objective, TrainConfig.model_validate({"steps": 1, "batch_size": 8, **values}), CPU)
    made.take(Way("float32", False, 1))
    for module in objective.modules() if fixed else ():
        if isinstance(module, BatchNorm):
            module.eval()
    return made


def gradients(objective: Objective) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in objective.named_parameters() if p.grad is not None}


def test_too_little_memory_on_a_gpu_is_one_message_with_its_cures(monkeypatch: pytest.MonkeyPatch) -> None:
    objective = supervised()
    made = replica(objective, accumulate=2)

    def full(batches: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(objective, "loss", full)
    with pytest.raises(ConfigError, match=r"a step with 4 images at once: lower batch_size, .*accumulate"):
        made.backward({"labelled": batch()})


@pytest.mark.parametrize("parts", [2, 4])
def test_gradients_and_figures_of_parts_are_the_whole_batch_s_means(parts: int) -> None:
    whole, cut = supervised(), supervised()
    seen = replica(whole, fixed=True).backward({"labelled": batch()})
    told = replica(cut, fixed=True, accumulate=parts).backward({"labelled": batch()})
    assert told.keys() == seen.keys() == {"loss", "accuracy"}
    assert all(torch.allclose(told[key], seen[key], atol=1e-6) for key in seen)
    expected, found = gradients(whole), gradients(cut)
    assert expected.keys() == found.keys()
    largest = max(float(value.abs().max()) for value in expected.values())
    assert largest > 1e-3
    assert all(torch.allclose(found[name], expected[name], atol=1e-5 * largest) for name in expected)


def test_with_batch_norm_each_part_is_normalised_for_itself() -> None:
    whole, cut = supervised(), supervised()
    seen = replica(whole).backward({"labelled": batch()})
    told = replica(cut, accumulate=2).backward({"labelled": batch()})
    assert abs(float(told["loss"] - seen["loss"])) > 1e-4


@pytest.mark.parametrize("kind", ["supervised", "contrastive"])
def test_blocks_that_are_computed_again_change_neither_gradients_nor_running_statistics(kind: str) -> None:
    if kind == "supervised":
        kept: Objective = supervised()
        batches = {"labelled": batch()}
    else:
        torch.manual_seed(0)
        kept, batches = Contrastive(SimCLRModel(ResNet(18, 0.125), ProjectionHead(64, 2, 8)), 0.5), {"train": batch(2)}
    again = copy.deepcopy(kept)
    first, second = replica(kept), replica(again, checkpoint_activations=True)
    calls = [0]
    for module in again.modules():
        if isinstance(module, BatchNorm):
            module.register_forward_hook(lambda *_: calls.__setitem__(0, calls[0] + 1))
    norms = sum(isinstance(module, BatchNorm) for module in again.modules())
    for _ in range(2):  # the second step's statistics hang on the first's
        before = calls[0]
        assert torch.equal(first.backward(batches)["loss"], second.backward(batches)["loss"])
        assert calls[0] - before > norms, "blocks were computed again"
    expected, found = gradients(kept), gradients(again)
    assert expected.keys() == found.keys()
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []
    state = again.state_dict()
    assert [name for name, value in kept.state_dict().items() if not torch.equal(value, state[name])] == []
    assert first.gradient_norm(list(kept.parameters())) == second.gradient_norm(list(again.parameters()))


def test_a_batch_that_accumulate_does_not_divide_is_refused_instead_of_losing_images() -> None:
    assert share(12, "pretrain.batch_size", 4) == 12
    with pytest.raises(ConfigError, match=r"pretrain.batch_size is 10, .*4 parts \(accumulate\).* multiple of 4"):
        share(10, "pretrain.batch_size", 4)
