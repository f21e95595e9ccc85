"""Semi-ViT's mixing and losses against the official code's, with what chance decided there."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from tenfold.losses.mixup import Draws, mix, mixed_targets, pseudo_mixup, rectangles, smoothed
from tenfold.losses.self_training import pseudo_label_loss


class Known(dict[str, NDArray[Any]]):
    """Tensors of one case of a file."""

    def tensor(self, name: str) -> torch.Tensor:
        return torch.from_numpy(self[name])


def case_of(arrays: Any, file: str, case: str) -> Known:
    oracle = arrays(file)
    return Known({name.removeprefix(f"{case}_"): oracle[name] for name in oracle.files if name.startswith(f"{case}_")})


@pytest.mark.parametrize("case", ["pp0", "pp1", "pp2"])
def test_probabilistic_pseudo_mixup_and_its_loss_are_the_official_ones(
    case: str, arrays: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = case_of(arrays, "semivit_prob_pseudo_mixup", case)
    guesses = F.softmax(known.tensor("logits_teacher"), 1)
    boxes = known.tensor("bbox_yl_yh_xl_xh_lam")
    monkeypatch.setattr("tenfold.losses.mixup.rectangles", lambda *_: boxes[:, :4].long())  # as they were drawn there
    draws = Draws(known.tensor("perm"), known.tensor("use_cutmix"), torch.zeros(len(guesses), 2, dtype=torch.long))
    found = pseudo_mixup(known.tensor("x"), guesses, draws, smoothing=float(known["cfg"][3]))
    torch.testing.assert_close(found.images, known.tensor("x_mixed"), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.targets, known.tensor("soft_targets"), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.confidence, known.tensor("new_prob"), rtol=1e-5, atol=1e-6)
    logits = known.tensor("student_logits")
    for threshold in (0.3, 0.5, 0.6, 0.7):
        loss, share = pseudo_label_loss(logits, found.targets, found.confidence, threshold)
        assert loss.item() == pytest.approx(float(known[f"loss_u_th{threshold}"]), rel=1e-5)
        assert share.item() == pytest.approx(float(known[f"mask_th{threshold}"].mean()))
    sure, labels = guesses.max(1)
    assert torch.equal(labels, known.tensor("pseudo"))
    plain = pseudo_label_loss(logits, smoothed(labels, 10, 0.0), sure, 0.6).loss
    assert plain.item() == pytest.approx(float(known["fixmatch_loss_u_th0.6"]), rel=1e-5)


@pytest.mark.parametrize("case", ["pp1", "pp2"])
def test_a_rectangles_sides_are_the_official_ones_where_the_images_edge_does_not_cut_them(
    case: str, arrays: Any
) -> None:
    known = case_of(arrays, "semivit_prob_pseudo_mixup", case)
    guesses, partner = F.softmax(known.tensor("logits_teacher"), 1).amax(1), known.tensor("perm")
    share, drawn = guesses / (guesses + guesses[partner]), known.tensor("bbox_yl_yh_xl_xh_lam")[:, :4].long()
    compared = 0
    for number in known["use_cutmix"].nonzero()[0]:
        edges = drawn[number].view(2, 2)  # of rows, of columns
        found = rectangles(share[[number]], edges.sum(1)[None] // 2, 32, 32).view(2, 2)
        for (low, high), mine in zip(edges.tolist(), found.tolist(), strict=True):
            if low > 0 and high < 32:
                assert mine == [low, high]
                compared += 1
    assert compared


@pytest.mark.parametrize("case", ["m0", "m1", "m2", "m3"])
def test_labelled_mixup_and_its_loss_are_timms(case: str, arrays: Any) -> None:
    known = case_of(arrays, "semivit_labelled_mixup", case)
    mixup, cutmix = known["cfg"]
    rng = np.random.RandomState(int(known["np_seed"]))  # what timm draws, in its order
    rng.rand()  # whether to mix at all: always
    cut = bool(rng.rand() < 0.5) if mixup and cutmix else cutmix > 0
    share = float(rng.beta(cutmix, cutmix) if cut else rng.beta(mixup, mixup))
    centre = [rng.randint(0, 32), rng.randint(0, 32)] if cut else [0, 0]
    images, labels = known.tensor("x"), known.tensor("y")
    back = torch.arange(len(images) - 1, -1, -1)
    draws = Draws(back, torch.full((len(images),), bool(cut)), torch.tensor([centre] * len(images)))
    mixed = mix(images, torch.full((len(images),), share, dtype=torch.float64), draws)
    targets = mixed_targets(smoothed(labels, 10, 0.1), mixed.share, back)
    torch.testing.assert_close(mixed.images, known.tensor("xm"), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(targets, known.tensor("t"), rtol=1e-5, atol=1e-6)
    logits = known.tensor("logits")
    assert F.cross_entropy(logits, targets).item() == pytest.approx(float(known["soft_ce"]), rel=1e-5)
    assert F.cross_entropy(logits, labels, label_smoothing=0.1).item() == pytest.approx(float(known["ls_ce"]), rel=1e-5)
