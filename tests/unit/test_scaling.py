"""The estimates of docs/scaling.md: counts against known values, formulas against values computed by hand."""

from __future__ import annotations

import math
from pathlib import Path

import cluster
import counts
import estimate
import pytest
import scaling
import torch

from tenfold.losses import nt_xent
from tenfold.models.heads import ProjectionHead, SimCLRModel
from tenfold.models.resnet import ResNet

DOCUMENT = Path(__file__).parents[2] / "docs" / "scaling.md"


def small() -> SimCLRModel:
    return SimCLRModel(ResNet(10, 0.25), ProjectionHead(128, 2, 16))


def run_named(name: str) -> estimate.Run:
    return next(run for run in estimate.runs() if run.name == name)


@pytest.mark.slow
def test_the_document_holds_the_tables_that_the_script_computes() -> None:
    document, made = DOCUMENT.read_text(), scaling.tables()
    assert scaling.written(document, made) == document, "run make bench-scaling"
    for name, table in made.items():
        assert f"<!-- scaling:{name} -->\n{table}\n<!-- end -->" in document


def test_tables_go_between_their_markers_and_nowhere_else() -> None:
    before = "a\n<!-- scaling:x -->\nold\n<!-- end -->\nb\n"
    assert scaling.written(before, {"x": "new"}) == "a\n<!-- scaling:x -->\nnew\n<!-- end -->\nb\n"
    with pytest.raises(KeyError):
        scaling.written(before, {"y": "new"})


def test_networks_have_the_papers_multiply_adds_and_parameters() -> None:
    found = {name: network for name, (_, network) in estimate.networks().items()}
    assert found["R50, classes"].macs == pytest.approx(4.09e9, rel=2e-3)
    assert found["R50, classes"].parameters == 23_508_032 + 2048 * 1000 + 1000  # 25.6 million with a classifier
    assert found["R152 3x+SK, head"].parameters == 794_704_160 + 76_308_608
    assert found["ViT-B/16"].parameters == 86_567_656
    assert found["ViT-H/14"].parameters == 632_045_800
    assert found["R50, head"].norms == 53 + 2


def test_a_convolution_and_a_norm_are_counted_as_by_hand() -> None:
    found = counts.count(lambda: torch.nn.Sequential(ResNet(10, 0.25).stem, torch.nn.Flatten()), size=8)
    assert found.macs == 8 * 8 * 16 * 27
    assert found.parameters == 16 * 27 + 2 * 16
    pixels = 8 * 8 * 2  # bytes of a channel
    assert found.saved == pixels * (3 + 16 + 16)  # the images, the convolution's output, the norm's behind its ReLU


def test_the_meta_device_counts_what_a_cpu_keeps_and_bytes_grow_with_pixels() -> None:
    meta, real, larger = (
        counts.count(small, size, device) for size, device in ((16, "meta"), (16, "cpu"), (32, "meta"))
    )
    assert meta == real
    head = (128 + 128 + 128 + 16) * 2  # pooled features and what the head keeps, whatever the size of the image
    assert larger.saved - head == pytest.approx(4 * (meta.saved - head), rel=0.01)
    assert larger.checkpointed < larger.saved


def test_a_ring_sends_twice_what_it_reduces_but_for_the_rank_s_own_part() -> None:
    assert cluster.ring_all_reduce(800.0, 8) == 1400
    assert cluster.ring_all_reduce(800.0, 1) == 0
    assert cluster.fully_sharded(100.0, 8) == 1.5 * cluster.ring_all_reduce(4 * 100.0, 8)  # float32: 3 halves


def test_latencies_are_nccl_s_a_ring_s_grow_with_ranks_and_a_tree_s_with_their_logarithm() -> None:
    assert cluster.ring_gather(8) == pytest.approx((3.6 + 7 * 0.47) * 1e-6)
    assert cluster.ring_gather(64) == pytest.approx((3.6 + 56 * 0.846 + 7 * 2.7) * 1e-6)
    assert cluster.tree_reduce(512) == pytest.approx((4.4 + 2 * (7 * 0.936 + 6 * 5)) * 1e-6)


def test_misses_of_a_cache_are_those_of_a_simulated_one() -> None:
    assert cluster.cache_misses(1.0) == 0
    assert cluster.cache_misses(0.0) == 1
    generator, shards, held, missed = torch.Generator().manual_seed(0), 400, 260, 0
    recent: list[int] = []
    for epoch in range(40):
        for shard in torch.randperm(shards, generator=generator).tolist():
            if shard in recent:
                recent.remove(shard)
            elif epoch:
                missed += 1
            recent = [*recent, shard][-held:]
    assert missed / (39 * shards) == pytest.approx(cluster.cache_misses(held / shards), abs=0.01)


def test_shares_of_the_peak_follow_from_published_rates() -> None:
    found = cluster.published(4e9, 267e9)
    assert found[0].share == pytest.approx(24e9 * 56_050 / 8 / 989.4e12)


def test_runs_have_the_papers_steps() -> None:
    assert run_named("SimCLRv2 R152 3x+SK").steps == 250_228
    assert run_named("its fine-tuning, 1%").steps == 751
    assert run_named("its fine-tuning, 10%").steps == 3_754


def test_a_step_s_flops_count_backward_twice_recomputing_once_and_the_momentum_encoder_once() -> None:
    run = run_named("SimCLRv2 R152 3x+SK")
    one = 4096 * 2 * 2 * estimate.networks()[run.network][1].macs
    assert estimate.step_flops(run, checkpointed=False)["wide"] == pytest.approx(4 * one)
    assert estimate.step_flops(run, checkpointed=True)["wide"] == pytest.approx(5 * one)


def test_the_largest_pretraining_needs_parts_on_8_gpus_and_none_on_64() -> None:
    run = run_named("SimCLRv2 R152 3x+SK")
    parts = estimate.parts_needed(run, 8, checkpointed=False, sharded=False)
    assert parts is not None
    assert parts > 1
    assert not estimate.fits(run, 8, parts // 2, checkpointed=False, sharded=False)
    assert estimate.parts_needed(run, 8, checkpointed=False, sharded=True) == parts  # sharding the state does not help
    assert estimate.parts_needed(run, 64, checkpointed=False, sharded=False) == 1
    assert estimate.parts_needed(run_named("Semi-ViT B"), 512, checkpointed=False, sharded=False) is None


def test_nt_xent_goes_through_as_many_tiles_as_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nt_xent, "TILE", 8)
    z = torch.randn(2 * 20, 4)
    assert len(list(nt_xent._Rows.tiles(z, z, 1.0))) == counts.tiles_of(20, 1)
    assert counts.tiles_of(20, 3) < 3 * counts.tiles_of(20, 1)  # 60 columns a view fill 8 blocks, not 3 x 3
    several = torch.cat([z, z, z])
    assert len(list(nt_xent._Rows.tiles(z, several, 1.0))) == counts.tiles_of(20, 3)


def test_hours_lie_between_low_and_high() -> None:
    for run in estimate.runs():
        for gpus in estimate.GPUS:
            low, expected, high = (estimate.hours(run, gpus, name) for name in ("low", "expected", "high"))
            if low is None or expected is None or high is None:
                assert gpus > run.most
                continue
            assert low < expected < high
            assert not math.isnan(expected)


def test_a_batch_norm_over_ranks_takes_one_all_reduce_forward_and_one_backward() -> None:
    network = estimate.networks()["R50, head"][1]
    scenario = cluster.SCENARIOS["low"]  # 20 µs, whatever the ranks
    forward, backward = estimate.norm_seconds(network, 8, scenario)
    assert forward - 55 * 20e-6 == pytest.approx(cluster.ring_all_reduce(24 * network.norm_channels, 8) / 370e9)
    assert backward - 55 * 20e-6 == pytest.approx(cluster.ring_all_reduce(8 * network.norm_channels, 8) / 370e9)
    twice, same = estimate.norm_seconds(network, 8, scenario, 2)  # checkpointed
    assert (twice, same) == (2 * forward, backward)


def test_a_batch_norm_over_ranks_is_counted_with_its_collectives_and_more_operations_than_alone() -> None:
    alone, forward, backward = counts.launches_of_a_norm()
    assert alone < forward
    assert alone < backward
    assert not torch.distributed.is_initialized()
