"""Preflight's look at what the cluster can give: enough, too little, or not to be seen from here."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_kubernetes import NAMESPACE, FakeKubernetes, serve

from tenfold.environment import Environment
from tenfold.errors import CapacityError
from tenfold.pipelines.cluster import ClusterSettings, Placement
from tenfold.progress import Reporter
from tenfold.retry import leave, standing
from tenfold.trainjob import Demand, Needs, TrainJobSpec, check_capacity

GPU = "nvidia.com/gpu"


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeKubernetes]:
    for made in serve():
        monkeypatch.setenv("KUBECONFIG", str(made.kubeconfig(tmp_path / "kubeconfig")))
        yield made


@pytest.fixture
def told(tmp_path: Path) -> Callable[..., list[str]]:
    """Return what makes the check and returns what it says."""

    def check(autoscaled: bool = False, **demand: Any) -> list[str]:
        needs = Needs(accelerator=GPU, demands=(Demand(**demand),), autoscaled=autoscaled)
        check_capacity(needs, Reporter("preflight", tmp_path / "events.jsonl"))
        lines = (tmp_path / "events.jsonl").read_text().splitlines() if (tmp_path / "events.jsonl").exists() else []
        return [json.loads(line)["text"] for line in lines]

    return check


def nodes(*gpus: int) -> dict[str, Any]:
    items = [
        {"metadata": {"name": f"node-{n}"}, "status": {"allocatable": {"cpu": "8", **({GPU: str(k)} if k else {})}}}
        for n, k in enumerate(gpus)
    ]
    return {"kind": "NodeList", "apiVersion": "v1", "items": items}


def queue(cluster: FakeKubernetes, quota: str, **more: Any) -> None:
    flavors = [{"name": "gpus", "resources": [{"name": "cpu", "nominalQuota": "64"},
                                              {"name": GPU, "nominalQuota": quota}]}]  # fmt: skip
    cluster.objects["localqueues", "team"] = {"spec": {"clusterQueue": "all"}}
    cluster.objects["clusterqueues", "all"] = {"spec": {"resourceGroups": [{"flavors": flavors}], **more}}


def test_nodes_that_have_enough_are_told(cluster: FakeKubernetes, told: Callable[..., list[str]]) -> None:
    cluster.objects["nodes", ""] = nodes(0, 8, 4)
    assert told(gpus=4, pods=3) == [f"the nodes have 12 {GPU}, up to 8 each; asked for: 3 pods with 4 {GPU}"]


@pytest.mark.parametrize(
    ("there", "needs"), [((4, 4), {"gpus": 8}), ((0, 0), {"gpus": 1}), ((6,), {"gpus": 4, "pods": 2})]
)
def test_gpus_that_no_node_can_give_are_an_error_at_once(
    there: tuple[int, ...], needs: dict[str, int], cluster: FakeKubernetes, told: Callable[..., list[str]]
) -> None:
    cluster.objects["nodes", ""] = nodes(*there)
    with pytest.raises(CapacityError, match=f"the largest has {max(there)} allocatable"):
        told(**needs)
    assert told(**needs, autoscaled=True) == [
        "GPUs: not checked, since nodes are added as they are asked for (autoscaled)"
    ]


def test_a_role_that_may_not_list_nodes_leaves_it_unchecked_and_says_so(
    cluster: FakeKubernetes, told: Callable[..., list[str]]
) -> None:
    cluster.forbidden = {("list", "nodes")}
    (said,) = told(gpus=1)
    assert said.startswith("the nodes' GPUs: not checked: 403")
    assert "cannot list resource" in said


def test_a_quota_that_is_never_enough_is_an_error_and_one_that_may_be_borrowed_is_not(
    cluster: FakeKubernetes, told: Callable[..., list[str]]
) -> None:
    cluster.objects["nodes", ""] = nodes(8, 8)
    queue(cluster, "8")
    with pytest.raises(CapacityError, match=f"asks for 16 {GPU}, and the ClusterQueue all never gives more than 8"):
        told(gpus=8, pods=2, queue="team")
    queue(cluster, "8", cohort="everybody")
    assert told(gpus=8, pods=2, queue="team")[0] == f"the ClusterQueue all gives up to 8 {GPU}; asked for: 16"


def test_quantities_are_read_as_kubernetes_writes_them(cluster: FakeKubernetes, told: Callable[..., list[str]]) -> None:
    cluster.objects["nodes", ""] = nodes(8)
    cluster.objects["nodes", ""]["items"][0]["status"]["allocatable"][GPU] = "1k"  # what an API server makes of 1000
    queue(cluster, "2k")
    quota, there = told(gpus=8, queue="team")
    assert quota == f"the ClusterQueue all gives up to 2000 {GPU}; asked for: 8"
    assert there.startswith(f"the nodes have 1000 {GPU}")


def test_a_queue_that_leads_nowhere_is_an_error(cluster: FakeKubernetes, told: Callable[..., list[str]]) -> None:
    cluster.objects["nodes", ""] = nodes(8)
    cluster.objects["localqueues", "team"] = {"spec": {}}
    with pytest.raises(CapacityError, match="the LocalQueue team leads to no ClusterQueue"):
        told(gpus=1, queue="team")


def test_a_refusal_is_looked_at_again_by_the_next_try(
    cluster: FakeKubernetes, told: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.objects["nodes", ""] = nodes(0)  # as while a device plugin starts
    monkeypatch.setenv("TENFOLD_RUN_ID", "run")
    with pytest.raises(CapacityError) as refused:
        told(gpus=1)
    leave(Environment.read(), "preflight", refused.value)
    monkeypatch.setenv("KFP_RETRY_INDEX", "1")
    assert standing(Environment.read(), "preflight") is None


def test_a_queue_that_is_not_there_is_an_error_and_one_that_may_not_be_read_is_unchecked(
    cluster: FakeKubernetes, told: Callable[..., list[str]]
) -> None:
    cluster.objects["nodes", ""] = nodes(8)
    with pytest.raises(CapacityError, match=f"no LocalQueue team in the namespace {NAMESPACE}"):
        told(gpus=1, queue="team")
    queue(cluster, "8")
    cluster.forbidden = {("get", "clusterqueues")}
    assert told(gpus=1, queue="team")[0].startswith("the queue's quota: not checked: 403")


def test_a_cluster_without_kueue_leaves_the_quota_unchecked(
    cluster: FakeKubernetes, told: Callable[..., list[str]]
) -> None:
    cluster.objects["nodes", ""] = nodes(8)
    cluster.installed = False
    assert told(gpus=1, queue="team")[0].startswith("the queue's quota: not checked: this cluster serves no version")


def test_without_a_cluster_or_an_answer_nothing_is_checked_and_that_is_said(
    told: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    assert told(gpus=1)[-1].startswith("GPUs: not checked: no Kubernetes cluster")
    assert told(gpus=0) == told(gpus=0), "nothing is asked for, so nothing is said"
    for made in serve():
        monkeypatch.setenv("KUBECONFIG", str(made.kubeconfig(tmp_path / "kubeconfig")))
        made.faults = [("list", "nodes", "reset")] * 9
        assert "does not answer" in told(gpus=1)[-1]


@pytest.mark.parametrize(
    ("settings", "trainjob", "demands"),
    [
        ({"train": {"gpus": 8}}, None, [(1, 1, None), (8, 1, None)]),
        ({"train": {"gpus": 0}, "infer": {"gpus": 0}}, None, [(0, 1, None), (0, 1, None)]),
        ({}, {"nodes": 4, "gpus_per_node": 8, "queue": "team"}, [(1, 1, None), (8, 4, "team")]),
        ({"infer": {"gpus": 8}}, {"nodes": 2, "gpus_per_node": 4, "queue": "q"}, [(8, 1, None), (4, 2, "q")]),
    ],
)
def test_what_is_compiled_into_preflight_are_the_pods_that_infer_and_those_that_train(
    settings: dict[str, Any], trainjob: dict[str, Any] | None, demands: list[tuple[int, int, str | None]]
) -> None:
    spec = TrainJobSpec(image="a@sha256:" + "a" * 64, deadline_seconds=3600, **trainjob) if trainjob else None
    made = Placement(ClusterSettings.model_validate(settings)).needs(spec)
    assert [(demand.gpus, demand.pods, demand.queue) for demand in made.demands] == demands
    assert Needs.parse(made.model_dump_json(exclude_none=True)) == made


def test_the_pods_that_infer_are_looked_at_beside_a_job_of_smaller_ones(
    cluster: FakeKubernetes, tmp_path: Path
) -> None:
    cluster.objects["nodes", ""] = nodes(4, 4)
    needs = Needs(accelerator=GPU, demands=(Demand(gpus=8), Demand(gpus=4, pods=2)))
    with pytest.raises(CapacityError, match=f"asks for 1 pod with 8 {GPU}"):
        check_capacity(needs, Reporter("preflight", tmp_path / "events.jsonl"))
