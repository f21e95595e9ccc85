from __future__ import annotations

import pytest
import torch

from tenfold.config import ViTConfig
from tenfold.errors import ConfigError, DataError
from tenfold.losses.mixup import Draws, draw, mix, mix_labelled, pseudo_mixup, smoothed
from tenfold.models.resnet import ResNet
from tenfold.models.saved import build_encoder
from tenfold.models.vit import ViT, set_drop_path


def images(count: int) -> torch.Tensor:
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def test_targets_say_how_much_of_each_class_is_in_the_mixed_image() -> None:
    torch.manual_seed(0)
    flat = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 1, 16, 16)  # image k is k everywhere
    labels = torch.arange(4)
    for mixup, cutmix in ((0.8, 0.0), (0.0, 1.0), (0.8, 1.0)):
        for _ in range(20):
            mixed, targets = mix_labelled(flat, labels, 4, mixup=mixup, cutmix=cutmix, smoothing=0.0)
            torch.testing.assert_close(mixed.mean((1, 2, 3)), targets @ torch.arange(4.0), rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(targets.sum(1), torch.ones(4))


def test_nothing_is_mixed_where_both_strengths_are_zero() -> None:
    batch = images(4)
    mixed, targets = mix_labelled(batch, torch.arange(4), 4, mixup=0.0, cutmix=0.0, smoothing=0.1)
    assert mixed is batch
    assert torch.equal(targets, smoothed(torch.arange(4), 4, 0.1))


def test_the_surer_image_dominates_and_an_image_with_itself_stays_what_it_is() -> None:
    guesses = torch.tensor([[0.9, 0.1], [0.4, 0.6], [0.5, 0.5]])
    draws = Draws(torch.tensor([1, 0, 2]), torch.zeros(3, dtype=torch.bool), torch.zeros(3, 2, dtype=torch.long))
    batch = images(3)
    found = pseudo_mixup(batch, guesses, draws, 0.0)
    torch.testing.assert_close(found.images[0], 0.6 * batch[0] + 0.4 * batch[1])
    torch.testing.assert_close(found.images[2], batch[2])
    torch.testing.assert_close(found.targets, torch.tensor([[0.6, 0.4], [0.6, 0.4], [1.0, 0.0]]))
    torch.testing.assert_close(found.confidence, torch.tensor([0.9, 0.9, 0.5]))


def test_the_draws_of_a_batch_follow_from_the_generators_state_and_cutmix_copies_whole_pixels() -> None:
    batch = images(64)
    torch.manual_seed(3)
    first = draw(batch, 0.5)
    torch.manual_seed(3)
    assert all(torch.equal(a, b) for a, b in zip(first, draw(batch, 0.5), strict=True))
    assert sorted(first.partner.tolist()) == list(range(64))
    assert 16 <= int(first.cut.sum()) <= 48
    mixed = mix(batch, torch.full((64,), 0.4), first).images[first.cut]
    own, other = batch[first.cut], batch[first.partner][first.cut]
    assert bool(((mixed == own) | (mixed == other)).all())


def test_paths_are_dropped_in_training_alone_and_set_anew() -> None:
    torch.manual_seed(0)
    encoder = ViT("tiny", width=32, depth=3, heads=4, patch=8, image_size=16)
    set_drop_path(encoder, 0.9)
    batch = images(8)
    encoder.train()
    assert not torch.equal(encoder(batch), encoder(batch))
    encoder.eval()
    plain = encoder(batch)
    assert torch.equal(plain, encoder(batch))
    set_drop_path(encoder, 0.0)
    encoder.train()
    torch.testing.assert_close(encoder(batch), plain)


def test_networks_without_such_blocks_drop_no_paths() -> None:
    with pytest.raises(ConfigError, match="drop_path is for vision transformers"):
        set_drop_path(ResNet(10, 0.125), 0.1)


def test_images_of_no_whole_patches_are_refused() -> None:
    with pytest.raises(DataError, match="no whole patches of 16 pixels"):
        build_encoder(ViTConfig(vit="tiny"), image_size=40)
