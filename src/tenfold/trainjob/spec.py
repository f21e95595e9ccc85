"""What a TrainJob is: its settings, its name and labels, and the resource that is sent.

Relied on, of Kubeflow Trainer 2.3:

- The container ``node`` of the replicated job ``node`` trains. Its variables come from ``spec.trainer.env`` alone:
  Trainer's webhook refuses variables of that container in ``spec.runtimePatches``, and the SDK's trainer classes carry
  values, no references. So the resource is made here, checked by the SDK's model of it, and sent by the SDK's client.
- The torch plugin sets PET_NNODES, PET_NPROC_PER_NODE, PET_NODE_RANK, PET_MASTER_ADDR and PET_MASTER_PORT, and refuses
  jobs that set them. Without ``numProcPerNode`` a job without GPUs gets a process for each CPU.
- ``activeDeadlineSeconds`` counts from the job's start, which begins anew when a queue lets it go on.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, ValidationError

from tenfold.environment import ADDRESSES, CONFIG_MAP, CREDENTIALS, OPTIONAL, SECRET
from tenfold.errors import ConfigError, first_fault

GROUP, VERSION, KIND = "trainer.kubeflow.org", "v1alpha1", "TrainJob"
RUN_LABEL, STAGE_LABEL, QUEUE_LABEL = "tenfold.dev/run-id", "tenfold.dev/stage", "kueue.x-k8s.io/queue-name"
#: Replicated job and container that train, in Kubeflow's runtimes.
NODE = "node"

# A pod is called <job>-node-0-<index>-<5 letters>, and the name must fit the 63 characters of a DNS label.
_LONGEST_NAME = 63 - len("-node-0-99999-xxxxx")
_RESERVED = ("PET_NNODES", "PET_NPROC_PER_NODE", "PET_NODE_RANK", "PET_MASTER_ADDR", "PET_MASTER_PORT")

Text = Annotated[str, StringConstraints(min_length=1)]
Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$")]


def _quantity(value: object) -> object:
    text = str(value) if type(value) is int else value
    if not isinstance(text, str) or not re.fullmatch(r"[0-9]+(\.[0-9]+)?(m|k|[KMGTPE]i?)?", text):
        raise ValueError(f"{value!r} is no amount such as 16, 500m or 64Gi")
    return text


Quantity = Annotated[str, BeforeValidator(_quantity)]


class TrainJobSpec(BaseModel):
    """Where and on how much a training stage runs; nothing here may decide its result but the number of processes.

    Attributes:
        image: image of the training pods, by digest.
        nodes: number of pods.
        gpus_per_node: GPUs of each, and its number of processes; 0 trains on CPUs, with one process.
        cpus_per_node: CPUs of each, as Kubernetes has them; as the runtime says where left out.
        memory_per_node: memory of each, such as ``64Gi``; as the runtime says where left out.
        runtime: TrainingRuntime of the namespace, or else ClusterTrainingRuntime.
        queue: Kueue's local queue.
        deadline_seconds: longest time that the training may take from its start.
        accelerator: the resource that a GPU is.
        namespace: where the job is made; the launcher's own where left out.
        service_account: of the training pods; the namespace's default where left out.
    """

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    image: Text
    nodes: int = Field(ge=1, le=99_999)
    gpus_per_node: int = Field(ge=0)
    deadline_seconds: int = Field(ge=1)
    cpus_per_node: Quantity | None = None
    memory_per_node: Quantity | None = None
    runtime: Name = "torch-distributed"
    queue: Name | None = None
    accelerator: Text = "nvidia.com/gpu"
    namespace: Name | None = None
    service_account: Name | None = None

    @classmethod
    def parse(cls, text: str) -> TrainJobSpec:
        """Return the spec that ``TENFOLD_TRAINJOB`` holds as JSON.

        Raises:
            ConfigError: it is none.
        """
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise ConfigError(
                f"TENFOLD_TRAINJOB does not describe a TrainJob: {first_fault(error.errors())}; "
                "compile the pipeline anew with --launcher trainjob"
            ) from None

    def to_json(self) -> str:
        """Return the spec as ``TENFOLD_TRAINJOB`` holds it."""
        return self.model_dump_json(exclude_none=True)


def job_name(stage: str, run_id: str) -> str:
    """Return the name of a run's job for ``stage``: a DNS label (RFC 1035) that leaves room for its pods' names.

    Where the run's id does not fit, the end of the name is a digest of it, so that two runs never share a name.
    """
    wanted = f"{stage.replace('_', '-')}-{run_id}"
    name = re.sub(r"[^a-z0-9-]", "-", wanted.lower()).strip("-")
    if name == wanted and len(name) <= _LONGEST_NAME:
        return name
    return f"{name[: _LONGEST_NAME - 11].rstrip('-')}-{hashlib.sha256(wanted.encode()).hexdigest()[:10]}"


def run_label(run_id: str) -> str:
    """Return the value of the label ``tenfold.dev/run-id``: the run's id, or a digest where it is no label's value."""
    if re.fullmatch(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?", run_id):
        return run_id
    return hashlib.sha256(run_id.encode()).hexdigest()[:32]


def manifest(
    spec: TrainJobSpec, stage: str, run_id: str, command: Sequence[str], variables: Mapping[str, str], runtime_kind: str
) -> dict[str, Any]:
    """Return the TrainJob resource.

    Args:
        spec: where and on how much it runs.
        stage: the task's name.
        run_id: identity of the pipeline run.
        command: what each pod executes.
        variables: plain values for the pods' environment.
        runtime_kind: ``TrainingRuntime`` or ``ClusterTrainingRuntime``.

    Raises:
        ValueError: ``variables`` holds an address, a credential, what the torch plugin sets, or the TrainJob itself.
    """
    from kubeflow_trainer_api.models import TrainerV1alpha1TrainJob

    refused = set(variables) & {*ADDRESSES, *OPTIONAL, *CREDENTIALS, *_RESERVED, "TENFOLD_TRAINJOB"}
    if refused:
        raise ValueError(f"variables of a TrainJob that may not be given by value: {', '.join(sorted(refused))}")
    gpus = spec.gpus_per_node or None
    amounts = {"cpu": spec.cpus_per_node, "memory": spec.memory_per_node, spec.accelerator: gpus}
    resources = {name: str(amount) for name, amount in amounts.items() if amount is not None}
    labels = {RUN_LABEL: run_label(run_id), STAGE_LABEL: stage}
    trainer: dict[str, Any] = {
        "image": spec.image,
        "command": list(command),
        "numNodes": spec.nodes,
        "numProcPerNode": max(spec.gpus_per_node, 1),
        "env": [{"name": name, "value": value} for name, value in variables.items()] + _references(),
    }
    if resources:
        trainer["resourcesPerNode"] = {"limits": resources, "requests": resources}
    body: dict[str, Any] = {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": KIND,
        "metadata": {
            "name": job_name(stage, run_id),
            "labels": labels if spec.queue is None else {**labels, QUEUE_LABEL: spec.queue},
        },
        "spec": {
            "runtimeRef": {"apiGroup": GROUP, "kind": runtime_kind, "name": spec.runtime},
            "trainer": trainer,
            "activeDeadlineSeconds": spec.deadline_seconds,
        },
    }
    if spec.service_account is not None:
        pods = {"template": {"spec": {"serviceAccountName": spec.service_account}}}
        jobs = [{"name": NODE, "template": {"spec": pods}}]
        patch = {
            "manager": "tenfold.dev/launcher",
            "trainingRuntimeSpec": {"template": {"spec": {"replicatedJobs": jobs}}},
        }
        body["spec"]["runtimePatches"] = [patch]
    checked: dict[str, Any] = TrainerV1alpha1TrainJob.from_dict(body).to_dict()
    return checked


def _references() -> list[dict[str, Any]]:
    """Return variables that name where the pods find addresses and credentials."""
    places = (
        ("configMapKeyRef", CONFIG_MAP, ADDRESSES, False),
        ("configMapKeyRef", CONFIG_MAP, OPTIONAL, True),
        ("secretKeyRef", SECRET, CREDENTIALS, True),
    )
    return [
        {"name": name, "valueFrom": {kind: {"name": source, "key": name, "optional": optional}}}
        for kind, source, names, optional in places
        for name in names
    ]
