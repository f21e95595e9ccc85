from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tenfold.augment.stream import Batch
from tenfold.config import SelfTrainConfig
from tenfold.losses.distillation import distillation, sharpen, soften
from tenfold.losses.mae import masked_error
from tenfold.losses.mixup import draw, mix_labelled, pseudo_mixup
from tenfold.losses.nt_xent import nt_xent
from tenfold.models.heads import Classifier, ProjectionHead, SimCLRModel
from tenfold.models.mae import MaskedAutoencoder, masking, patches
from tenfold.models.resnet import ResNet
from tenfold.models.vit import ViT
from tenfold.training.average import Average
from tenfold.training.objectives import Contrastive, Distillation, Masked, Objective, Supervised
from tenfold.training.self_training import SelfTraining

CLASSES = 3
LABELS = torch.tensor([0, 1, 2, 0, 1, 2, 0, 0])


def classifier(seed: int) -> Classifier:
    torch.manual_seed(seed)
    model = Classifier(ResNet(10, 0.125), None, 0, CLASSES)
    nn.init.normal_(model.linear.weight)
    return model


def images(count: int, seed: int) -> Tensor:
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


def batch(*views: Tensor, numbers: list[int] | None = None) -> Batch:
    return Batch(list(views), torch.tensor(numbers if numbers is not None else list(range(len(views[0])))))


def norm_state(model: nn.Module) -> list[Tensor]:
    return [buffer.clone() for buffer in model.buffers()]


def all_equal(first: list[Tensor], second: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_contrastive_loss_is_nt_xent_of_both_views_in_one_batch() -> None:
    torch.manual_seed(0)
    model = SimCLRModel(ResNet(10, 0.125), ProjectionHead(64, 2, 8))
    twin = copy.deepcopy(model).train()
    objective = Contrastive(model, 0.5).train()
    first, second = images(6, 0), images(6, 1)
    loss, figures = objective.loss({"train": batch(first, second)})
    z = twin(torch.cat([first, second]))
    expected = nt_xent(z[:6], z[6:], 0.5)
    assert torch.allclose(loss, expected.loss, atol=1e-5)
    assert figures["contrast_accuracy"] == expected.accuracy


def test_in_bfloat16_the_networks_compute_in_it_and_the_similarities_in_float32(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    objective = Contrastive(SimCLRModel(ResNet(10, 0.125), ProjectionHead(64, 2, 8)), 0.5).train()
    seen: list[tuple[torch.dtype, bool]] = []
    whole = nt_xent

    def spy(first: Tensor, *given: object) -> object:
        seen.append((first.dtype, torch.is_autocast_enabled("cpu")))
        return whole(first, *given)  # type: ignore[arg-type]

    monkeypatch.setattr("tenfold.training.objectives.nt_xent", spy)
    hidden: list[torch.dtype] = []
    objective.model.encoder.register_forward_hook(lambda *call: hidden.append(call[-1].dtype))
    with torch.autocast("cpu", torch.bfloat16):
        objective.loss({"train": batch(images(6, 0), images(6, 1))})
    assert hidden == [torch.bfloat16]
    assert seen == [(torch.float32, False)]


@pytest.mark.parametrize("kind", ["supervised", "self_training", "soft labels", "live teacher", "mixed"])
def test_every_objective_trains_in_bfloat16_with_a_loss_of_float32(kind: str) -> None:
    model, teacher = classifier(0), classifier(1)
    soft = torch.full((8, CLASSES), 1 / CLASSES)
    if kind == "supervised":
        objective: Objective = Supervised(model, LABELS, 0.1, 0.9)
    elif kind == "self_training":
        objective = SelfTraining(model, LABELS, SelfTrainConfig(threshold=0.1), 0.9)
    else:
        live = teacher if kind == "live teacher" else None
        objective = Distillation(model, live, soft, LABELS, 2.0, 0.5 if kind == "mixed" else 1.0, 0.0)
    objective.train()
    batches = {"labelled": batch(images(4, 0)), "unlabelled": batch(images(4, 1), images(4, 2))}
    with torch.autocast("cpu", torch.bfloat16):
        loss, figures = objective.loss(batches)
    loss.backward()  # type: ignore[no-untyped-call]
    objective.after_step()
    assert loss.dtype == torch.float32
    assert loss.isfinite()
    assert all(value.isfinite() for value in figures.values())
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters())


def test_supervised_loss_takes_the_labels_by_sample_number() -> None:
    objective = Supervised(classifier(0), LABELS, 0.1, 0.0).train()
    twin = copy.deepcopy(objective.model)
    x, numbers = images(4, 0), [5, 0, 7, 1]
    loss, figures = objective.loss({"labelled": batch(x, numbers=numbers)})
    logits = twin(x)
    assert torch.allclose(loss, F.cross_entropy(logits, LABELS[numbers], label_smoothing=0.1), atol=1e-5)
    assert figures["accuracy"] == (logits.argmax(1) == LABELS[numbers]).float().mean()


def test_training_yields_the_average_where_there_is_one_and_the_network_where_not() -> None:
    with_average, without = (Supervised(classifier(0), LABELS, 0.0, decay) for decay in (0.9, 0.0))
    assert isinstance(with_average.average, Average)
    assert with_average.result() is with_average.average.model
    assert without.result() is without.model


def test_an_average_follows_weights_and_statistics_by_one_minus_its_decay() -> None:
    model, target = classifier(0), classifier(1)
    target.train()(images(8, 0))  # other batch-norm statistics and counters
    average = Average(model, 0.9)
    average.update(target)
    for name, value in average.model.state_dict().items():
        start, goal = model.state_dict()[name], target.state_dict()[name]
        if value.is_floating_point():
            assert torch.allclose(value, 0.9 * start + 0.1 * goal, atol=1e-6)
        else:
            assert torch.equal(value, goal)


def test_a_warmed_up_average_forgets_its_start_quickly() -> None:
    model, target = classifier(0), classifier(1)
    cold, warm = Average(model, 0.999), Average(model, 0.999, warm_up=True)
    for _ in range(20):
        cold.update(target)
        warm.update(target)
    goal = target.encoder.stem[0][0].weight

    def distance(average: Average) -> float:
        return (average.model.encoder.stem[0][0].weight - goal).norm().item()  # type: ignore[union-attr, operator]

    assert distance(warm) < 0.01 * distance(cold)
    assert warm.updates == 20


def test_an_average_stays_in_evaluation_mode_and_out_of_training() -> None:
    objective = Supervised(classifier(0), LABELS, 0.0, 0.9).train()
    assert objective.model.training
    assert objective.average is not None
    assert not any(module.training for module in objective.average.model.modules())
    assert not any(p.requires_grad for p in objective.average.parameters())
    assert objective.trained() == [objective.model]


def self_training(
    threshold: float = 0.0, weight: float = 1.0, decay: float = 0.9, *, alignment: bool = False, **more: Any
) -> SelfTraining:
    align = "labelled" if alignment else "none"
    config = SelfTrainConfig.model_validate(
        {"threshold": threshold, "unlabelled_weight": weight, "align": align, **more}
    )
    objective = SelfTraining(classifier(0), LABELS, config, decay)
    objective.train()
    return objective


def self_training_batches() -> dict[str, Batch]:
    return {"labelled": batch(images(4, 0), numbers=[4, 2, 7, 0]), "unlabelled": batch(images(6, 1), images(6, 2))}


def test_a_step_counts_as_without_pseudo_labels_only_where_none_of_its_parts_had_one() -> None:
    objective, batches = self_training(threshold=1.0), self_training_batches()
    for steps in (1, 2):
        for _ in range(3):
            objective.loss(batches)
        objective.after_step()
        assert int(objective.dry) == steps
    objective.loss(batches)
    objective.config = SelfTrainConfig(threshold=0.0)
    objective.loss(batches)
    objective.after_step()
    assert int(objective.dry) == 0


def test_self_training_adds_the_weighted_unlabelled_loss_of_one_common_pass() -> None:
    objective, batches = self_training(weight=2.5), self_training_batches()
    assert objective.average is not None
    twin, teacher = copy.deepcopy(objective.model), copy.deepcopy(objective.average.model)
    loss, figures = objective.loss(batches)
    weak, strong = batches["unlabelled"].views
    logits = twin(torch.cat([batches["labelled"].views[0], strong]))
    known = F.cross_entropy(logits[:4], LABELS[[4, 2, 7, 0]])
    pseudo = F.cross_entropy(logits[4:], teacher(weak).argmax(1))
    assert torch.allclose(loss, known + 2.5 * pseudo, atol=1e-4)
    assert torch.allclose(figures["supervised_loss"], known, atol=1e-5)
    assert figures["confident_share"] == 1


def test_the_self_training_teacher_gets_no_gradient_and_keeps_its_statistics() -> None:
    objective = self_training(alignment=True)
    assert objective.average is not None
    before = norm_state(objective.average)
    objective.loss(self_training_batches())[0].backward()
    assert all(p.grad is None for p in objective.average.parameters())
    assert all(p.grad is not None for p in objective.model.parameters())
    assert all_equal(norm_state(objective.average), before)


def test_self_training_without_a_confident_image_learns_from_the_labels_alone() -> None:
    objective, batches = self_training(threshold=1.0, weight=100.0), self_training_batches()
    loss, figures = objective.loss(batches)
    assert figures["confident_share"] == 0
    assert figures["unlabelled_loss"] == 0
    assert torch.equal(loss, figures["supervised_loss"])
    assert loss.isfinite()


def test_alignment_keeps_a_running_prediction_in_the_state_and_the_labelled_prior() -> None:
    objective = self_training(alignment=True)
    assert objective.prior.tolist() == [0.5, 0.25, 0.25]
    before = objective.running.clone()
    objective.loss(self_training_batches())
    assert not torch.equal(objective.running, before)
    assert objective.running.sum() == pytest.approx(1, abs=1e-5)
    assert {"running", "prior"} <= objective.state_dict().keys()
    still = self_training(alignment=False)
    still.loss(self_training_batches())
    assert torch.equal(still.running, before)


def test_the_self_training_teacher_follows_after_each_step() -> None:
    objective = self_training(decay=0.5)
    assert objective.average is not None
    start = objective.average.model.linear.weight.clone()  # type: ignore[union-attr, operator]
    with torch.no_grad():
        objective.model.linear.weight += 1
    objective.after_step()
    assert torch.allclose(objective.average.model.linear.weight, start + 0.5)  # type: ignore[union-attr, arg-type]


@pytest.mark.parametrize("method", ["ema_teacher", "fixmatch", "pseudo_label"])
@pytest.mark.parametrize("decay", [0.9, 0.0])
def test_who_labels_and_what_is_kept_is_the_method_s(method: str, decay: float) -> None:
    objective = self_training(method=method, decay=decay)
    start = copy.deepcopy(objective.model.state_dict())
    with torch.no_grad():
        objective.model.linear.weight += torch.randn(objective.model.linear.weight.shape)
    objective.after_step()
    teacher = objective.teacher.state_dict()["linear.weight"]
    moved = objective.model.linear.weight
    if method == "fixmatch":
        assert objective.teacher is objective.model
        assert objective.teacher.training  # as the official code
    elif method == "pseudo_label":
        assert torch.equal(teacher, start["linear.weight"])
    else:
        assert torch.allclose(teacher, decay * start["linear.weight"] + (1 - decay) * moved, atol=1e-6)
    if decay:
        kept = objective.result().state_dict()["linear.weight"]
        assert torch.allclose(kept, 0.9 * start["linear.weight"] + 0.1 * moved, atol=1e-6)
    else:
        assert (objective.result() is objective.model) == (method != "ema_teacher")


def test_a_student_that_guesses_for_itself_trains_every_weight_in_bfloat16() -> None:
    objective = self_training(method="fixmatch", decay=0.0)
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = objective.loss(self_training_batches())
    loss.backward()
    assert all(p.grad is not None for p in objective.model.parameters())


@pytest.mark.parametrize(("method", "decay"), [("ema_teacher", 0.5**0.1), ("fixmatch", 0.0), ("pseudo_label", 0.0)])
def test_the_average_follows_from_the_run_s_length_and_the_method(method: Any, decay: float) -> None:
    assert SelfTrainConfig(method=method).decay(143) == pytest.approx(decay, abs=1e-4)
    assert SelfTrainConfig(method=method, average=0.7).decay(143) == 0.7


def test_mixed_pseudo_labels_and_labelled_images_are_what_the_losses_say() -> None:
    more = {"pseudo_mixup": True, "mixup": 0.8, "cutmix": 1.0, "label_smoothing": 0.1}
    objective, batches = self_training(threshold=0.0, weight=5.0, **more), self_training_batches()
    assert objective.average is not None
    twin, teacher = copy.deepcopy(objective.model), copy.deepcopy(objective.average.model)
    torch.manual_seed(3)
    loss, figures = objective.loss(batches)
    torch.manual_seed(3)
    weak, strong = batches["unlabelled"].views
    guess = F.softmax(teacher(weak), 1)
    mixed = pseudo_mixup(strong, guess, draw(strong, 0.5), 0.1)
    known = batches["labelled"]
    images_, targets = mix_labelled(
        known.views[0], LABELS[known.numbers], CLASSES, mixup=0.8, cutmix=1.0, smoothing=0.1
    )
    logits = twin(torch.cat([images_, mixed.images]))
    told = F.cross_entropy(logits[:4], targets)
    pseudo = F.cross_entropy(logits[4:], mixed.targets)
    assert torch.allclose(loss, told + 5 * pseudo, atol=1e-4)
    assert figures["confident_share"] == 1


@pytest.mark.parametrize("mixes", [None, 0.0, 1.0])
def test_an_image_of_no_known_class_teaches_nothing(mixes: float | None) -> None:
    batches = self_training_batches()
    known = torch.tensor([1.0, 0.0, 1.0, 0.0, 1.0, 1.0])
    config = SelfTrainConfig(threshold=0.0, pseudo_mixup=mixes is not None, pseudo_cutmix=mixes or 0.0)
    losses = []
    for change in (0.0, 0.3):  # other pixels of the foreign images
        objective = SelfTraining(classifier(0), LABELS, config, 0.9, known=known).train()
        objective.model.eval()  # so that no batch statistics tell of them
        weak, strong = (view.clone() for view in batches["unlabelled"].views)
        for view in (weak, strong):
            view[1] += change
            view[3] += change
        torch.manual_seed(1)
        told = {"labelled": batches["labelled"], "unlabelled": Batch([weak, strong], torch.arange(6))}
        losses.append(objective.loss(told)[0])
    assert torch.equal(losses[0], losses[1])


def test_a_classifier_is_trained_on_mixed_images_where_that_is_asked_for() -> None:
    objective = Supervised(classifier(0), LABELS, 0.1, 0.0, mixup=0.8, cutmix=0.0).train()
    twin, known = copy.deepcopy(objective.model), batch(images(4, 0), numbers=[4, 2, 7, 0])
    torch.manual_seed(2)
    loss, _ = objective.loss({"labelled": known})
    torch.manual_seed(2)
    x, targets = mix_labelled(known.views[0], LABELS[known.numbers], CLASSES, mixup=0.8, cutmix=0.0, smoothing=0.1)
    assert not torch.equal(x, known.views[0])
    assert torch.allclose(loss, F.cross_entropy(twin(x), targets), atol=1e-5)


def test_a_masked_network_s_loss_is_that_of_the_patches_it_did_not_see() -> None:
    torch.manual_seed(0)
    model = MaskedAutoencoder(ViT("tiny", width=24, heads=3, depth=1, patch=4, image_size=16), 16, 1, 2)
    objective = Masked(model, 0.75).train()
    x = images(4, 0)
    torch.manual_seed(5)
    loss, figures = objective.loss({"train": batch(x)})
    torch.manual_seed(5)
    mask = masking(torch.rand(4, 16), 0.75)
    wanted = patches(model.encoder.normalised(x), 4)
    assert torch.allclose(
        loss, masked_error(model(model.encoder.normalised(x), mask), wanted, mask.masked, normalise=True)
    )
    assert figures == {}
    loss.backward()  # type: ignore[no-untyped-call]
    without = {name for name, p in model.named_parameters() if p.requires_grad and p.grad is None}
    assert without == set()


SOFT = torch.softmax(torch.randn(10, CLASSES, generator=torch.Generator().manual_seed(5)), 1)


def distil(teacher: Classifier | None, temperature: float = 2.0, alpha: float = 1.0) -> Distillation:
    objective = Distillation(classifier(0), teacher, SOFT, LABELS, temperature, alpha, 0.0)
    objective.train()
    return objective


def test_distillation_learns_the_soft_labels_of_the_batch_s_images() -> None:
    objective, x, numbers = distil(None), images(4, 0), [9, 0, 3, 3]
    twin = copy.deepcopy(objective.model)
    loss, _ = objective.loss({"unlabelled": batch(x, numbers=numbers)})
    expected = distillation(twin(x), sharpen(SOFT, 2.0)[numbers], 2.0)
    assert torch.allclose(loss, expected, atol=1e-5)


def test_a_live_teacher_is_shown_the_student_s_very_view_in_evaluation_mode() -> None:
    teacher = classifier(7)
    teacher.train()(images(16, 3))  # statistics that differ from any batch's
    objective, x = distil(teacher), images(4, 0)
    twin = copy.deepcopy(objective.model)
    loss, _ = objective.loss({"unlabelled": batch(x, numbers=[0, 1, 2, 3])})
    expected = distillation(twin(x), soften(teacher.eval()(x), 2.0), 2.0)
    assert torch.allclose(loss, expected, atol=1e-5)


def test_a_live_teacher_stays_in_evaluation_mode_without_gradients_or_new_statistics() -> None:
    objective = distil(classifier(7))
    objective.train()
    teacher = objective._teacher[0]
    assert teacher is not None
    assert not any(module.training for module in teacher.modules())
    before = norm_state(teacher)
    objective.loss({"unlabelled": batch(images(4, 0))})[0].backward()
    assert all(p.grad is None for p in teacher.parameters())
    assert all_equal(norm_state(teacher), before)
    assert objective.trained() == [objective.model]


def test_alpha_mixes_distillation_with_the_true_labels_of_a_common_pass() -> None:
    objective, x, known = distil(None, alpha=0.25), images(4, 0), images(3, 1)
    twin = copy.deepcopy(objective.model)
    loss, _ = objective.loss(
        {"unlabelled": batch(x, numbers=[1, 2, 3, 4]), "labelled": batch(known, numbers=[6, 2, 1])}
    )
    logits = twin(torch.cat([x, known]))
    distilled = distillation(logits[:4], sharpen(SOFT, 2.0)[[1, 2, 3, 4]], 2.0)
    supervised = F.cross_entropy(logits[4:], LABELS[[6, 2, 1]])
    assert torch.allclose(loss, 0.25 * distilled + 0.75 * supervised, atol=1e-5)


def test_figures_carry_no_graph() -> None:
    for figures in (
        self_training().loss(self_training_batches())[1],
        distil(None).loss({"unlabelled": batch(images(4, 0))})[1],
    ):
        assert not any(value.requires_grad for value in figures.values())
