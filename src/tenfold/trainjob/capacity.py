"""Whether the cluster can ever give the GPUs that the pipeline asks for, as far as this pod's role lets it look.

A task that asks for more than any node has waits for ever; preflight says so in seconds. What may not be looked at is
said to be unchecked, and is no error.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tenfold.errors import CapacityError, ConfigError, TrainJobError, first_fault
from tenfold.progress import Reporter, count
from tenfold.trainjob.cluster import connection
from tenfold.trainjob.refusals import answer

_LIMITS = (3, 10)  # seconds for connecting and for each answer: a preflight does not wait
#: Kueue's, the newest first: a cluster serves one or both.
_VERSIONS = ("v1beta2", "v1beta1")


class Demand(BaseModel):
    """GPUs of one kind of pod.

    Attributes:
        gpus: of each pod.
        pods: that many at once.
        queue: Kueue's local queue in which they wait, where there is one.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    gpus: int = Field(ge=0)
    pods: int = Field(default=1, ge=1)
    queue: str | None = None


class Needs(BaseModel):
    """What the pipeline asks for.

    Attributes:
        accelerator: the resource that a GPU is.
        demands: of its kinds of pods.
        namespace: of the TrainJobs; without one that of the own pod.
        autoscaled: nodes are added as pods ask for them, so that those that are there now say nothing.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    accelerator: str
    demands: tuple[Demand, ...]
    namespace: str | None = None
    autoscaled: bool = False

    @classmethod
    def parse(cls, text: str) -> Needs:
        """Read what was compiled into the pipeline.

        Raises:
            ConfigError: another version wrote it.
        """
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise ConfigError(
                f"TENFOLD_NEEDS does not fit this version ({first_fault(error.errors())}); compile the pipeline again"
            ) from None


class _UnseenError(Exception):
    """What was asked for cannot be seen from here; the message says why."""


class _UnservedError(_UnseenError):
    """The API server does not serve this version of the resource."""


def check_capacity(needs: Needs, reporter: Reporter) -> None:
    """Compare what is needed with Kueue's quota and with the nodes' allocatable GPUs.

    Args:
        needs: of the pipeline.
        reporter: told what was found, and what was not checked.

    Raises:
        CapacityError: the cluster, as it is now, can never run it.
    """
    demands = [demand for demand in needs.demands if demand.gpus]
    if not demands:
        return
    from kubernetes import client

    try:
        configuration, namespace = connection(needs.namespace)
    except ConfigError as error:
        reporter.note(f"GPUs: not checked: {error}")
        return
    with client.ApiClient(configuration) as api:
        for demand in demands:
            if demand.queue is not None:
                check = partial(_check_queue, api, namespace, needs.accelerator, demand)
                _told(reporter, "the queue's quota", check)
        if needs.autoscaled:
            reporter.note("GPUs: not checked, since nodes are added as they are asked for (autoscaled)")
        else:
            _told(reporter, "the nodes' GPUs", partial(_check_nodes, api, needs.accelerator, demands))


def _told(reporter: Reporter, what: str, check: Callable[[], str]) -> None:
    try:
        reporter.note(check())
    except _UnseenError as error:
        reporter.note(f"{what}: not checked: {error}")


def _check_nodes(api: Any, accelerator: str, demands: Sequence[Demand]) -> str:
    from kubernetes import client
    from kubernetes.utils.quantity import parse_quantity

    nodes = _asked(lambda: client.CoreV1Api(api).list_node(_request_timeout=_LIMITS)).items
    there = [int(parse_quantity((node.status.allocatable or {}).get(accelerator, 0))) for node in nodes]
    largest = max(there, default=0)
    for demand in demands:
        fit = sum(each // demand.gpus for each in there)
        if fit < demand.pods:
            raise CapacityError(
                f"the pipeline asks for {_asked_for(accelerator, demand)} at once, and the cluster's "
                f"{count(len(there), 'node')} can hold {fit}: the largest has {largest} allocatable. Ask for fewer "
                "(gpus in the file of `tenfold compile --cluster`, or --gpus-per-node and --nodes), look whether the "
                "GPUs' device plugin runs, or set autoscaled: true there"
            )
    asked = " and ".join(_asked_for(accelerator, demand) for demand in demands)
    return f"the nodes have {sum(there)} {accelerator}, up to {largest} each; asked for: {asked}"


def _asked_for(accelerator: str, demand: Demand) -> str:
    return f"{count(demand.pods, 'pod')} with {demand.gpus} {accelerator}"


def _check_queue(api: Any, namespace: str, accelerator: str, demand: Demand) -> str:
    from kubernetes import client
    from kubernetes.utils.quantity import parse_quantity

    custom = client.CustomObjectsApi(api)
    local = _of_kueue(
        custom.get_namespaced_custom_object, namespace=namespace, plural="localqueues", name=demand.queue,
        absent=f"there is no LocalQueue {demand.queue} in the namespace {namespace}, so TrainJobs would wait for ever: "
        "take one that is there (--queue), or let an administrator make it",
    )  # fmt: skip
    name = local["spec"].get("clusterQueue")
    if not name:
        raise CapacityError(f"the LocalQueue {demand.queue} leads to no ClusterQueue; TrainJobs would wait for ever")
    queue = _of_kueue(
        custom.get_cluster_custom_object, plural="clusterqueues", name=name,
        absent=f"the LocalQueue {demand.queue} leads to a ClusterQueue {name}, which is not there",
    )  # fmt: skip
    given = [
        parse_quantity(resource["nominalQuota"]) + parse_quantity(resource.get("borrowingLimit") or 0)
        for group in queue["spec"].get("resourceGroups", [])
        for flavor in group["flavors"]
        for resource in flavor["resources"]
        if resource["name"] == accelerator
    ]
    wanted = demand.gpus * demand.pods
    # a queue of a cohort may borrow what others leave
    borrows = bool(queue["spec"].get("cohort") or queue["spec"].get("cohortName"))
    if sum(given) < wanted and not borrows:
        raise CapacityError(
            f"a TrainJob asks for {wanted} {accelerator}, and the ClusterQueue {name} never gives more than "
            f"{sum(given)}: ask for fewer (--nodes, --gpus-per-node), or for a larger quota"
        )
    return f"the ClusterQueue {name} gives up to {sum(given)} {accelerator}; asked for: {wanted}"


def _of_kueue(function: Callable[..., Any], absent: str, **what: Any) -> Any:
    for version in _VERSIONS:
        call = partial(function, group="kueue.x-k8s.io", version=version, **what, _request_timeout=_LIMITS)
        try:
            return _asked(call, absent)
        except _UnservedError:
            continue
    raise _UnseenError("this cluster serves no version of Kueue's resources that is known here")


def _asked(call: Callable[[], Any], absent: str | None = None) -> Any:
    """Return the API server's answer.

    Raises:
        CapacityError: what was asked for is not there, and must be (``absent``).
        _UnservedError: the resource is not served.
        _UnseenError: it may not be read, or the server does not answer.
    """
    from kubernetes.client import ApiException
    from urllib3.exceptions import HTTPError

    try:
        return call()
    except ApiException as error:
        status, message, details = answer(error)
        if status == 404 and details.get("name") and absent is not None:
            raise CapacityError(absent) from None
        if status == 404:
            raise _UnservedError(message) from None
        raise _UnseenError(message) from None
    except (HTTPError, OSError, TrainJobError) as error:
        raise _UnseenError(f"the Kubernetes API server does not answer ({type(error).__name__})") from None
