"""What each task asks of a cluster: its pod's size, time, tries, place and identity; kfp.local passes over it all.

Names are fixed, so that a run started from the Kubeflow UI needs nothing but the form: the run's id comes
from the pod's label, addresses from the ConfigMap ``tenfold-env``, credentials from the Secret
``tenfold-s3``. None of it enters KFP's cache key.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from kfp import dsl, kubernetes
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    field_validator,
    model_validator,
)

from tenfold.environment import ADDRESSES, CONFIG_MAP, CREDENTIALS, OPTIONAL, SECRET
from tenfold.errors import ConfigError, first_fault
from tenfold.trainjob import Demand, Needs, Quantity, TrainJobSpec

#: Annotations of pods: how many GPUs a task is to see, and for preflight those that the pipeline asks for.
GPUS, NEEDS = "tenfold.dev/gpus", "tenfold.dev/needs"
# What the API server takes as the value of a label, and as the name of a label or a resource.
_WORD = "[A-Za-z0-9]([-_.A-Za-z0-9]{0,61}[A-Za-z0-9])?"
_Value = Annotated[str, StringConstraints(pattern=f"^({_WORD})?$")]
_Key = Annotated[str, StringConstraints(pattern=f"^([a-z0-9.-]{{1,253}}/)?{_WORD}$")]
#: A year; Kubernetes and KFP hold seconds in 32 bits.
_LONGEST_HOURS = 8784


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Pod(_Settings):
    """One kind of pod.

    Attributes:
        cpu: CPUs asked for; a pod may use more where the node has them idle.
        memory: memory asked for, and the most that it gets.
        disk: size of ``/tmp``, where shards are cached and outputs are written.
        hours: longest time that one try may take.
        gpus: GPUs; 0 for none.
        shm: size of ``/dev/shm``, through which NCCL's processes speak; none where left out.
    """

    cpu: Quantity = "1"
    memory: Quantity = "2Gi"
    disk: Quantity = "10Gi"
    hours: float = Field(default=2, ge=0.01, le=_LONGEST_HOURS)
    gpus: int = Field(default=0, ge=0, le=1024)
    shm: Quantity | None = None

    @field_validator("memory")
    @classmethod
    def _whole(cls, value: str) -> str:
        if value.endswith("m"):
            raise ValueError(f"'{value}' is thousandths of a byte; megabytes are written M or Mi")
        return value


class Toleration(_Settings):
    """A taint of nodes that GPU pods may run on all the same."""

    key: str
    operator: Literal["Exists", "Equal"] = "Exists"
    value: str | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = "NoSchedule"

    @model_validator(mode="after")
    def _fits(self) -> Toleration:
        if (self.operator == "Exists") != (self.value is None):
            raise ValueError("Kubernetes takes a value with operator Equal, and none with Exists")
        return self


def _spelled(value: object) -> object:
    """Return labels as Kubernetes has them, text all: YAML reads true and 1 as what they look like."""
    if not isinstance(value, dict):
        return value
    return {str(key): _label(each) if isinstance(each, bool | int) else each for key, each in value.items()}


def _label(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


class ClusterSettings(_Settings):
    """How the pipeline's tasks are placed; given to ``tenfold compile --cluster FILE`` as YAML.

    Attributes:
        control: preflight, the listing and merging of images, promote, and the launchers of TrainJobs.
        pack: packing images into shards, one pod a partition.
        infer: augment, pseudo_label and evaluate.
        train: the stages that train; with TrainJobs that job's nodes take its place.
        accelerator: the resource that a GPU is.
        tolerations: of GPU pods.
        node_selector: labels of the nodes for GPU pods.
        user: numeric user and group that the images have; OpenShift gives its own.
        retries: further tries of a task that failed.
        backoff_seconds: pause before the first of them; it doubles, up to an hour.
        autoscaled: nodes are added as pods ask for them, so that preflight does not look at those that are there.
        days_kept: for which the cluster keeps the pods of a run that is over.
    """

    control: Pod = Pod()
    pack: Pod = Pod(cpu="4", memory="8Gi", disk="50Gi", hours=24)
    infer: Pod = Pod(cpu="8", memory="32Gi", disk="200Gi", hours=12, gpus=1, shm="8Gi")
    train: Pod = Pod(cpu="8", memory="64Gi", disk="200Gi", hours=72, gpus=1, shm="16Gi")
    accelerator: _Key = "nvidia.com/gpu"
    tolerations: tuple[Toleration, ...] = (Toleration(key="nvidia.com/gpu"),)
    node_selector: Annotated[dict[_Key, _Value], BeforeValidator(_spelled)] = {}
    user: int = Field(default=10001, ge=1, le=2**31 - 1)
    retries: int = Field(default=3, ge=0, le=100)
    backoff_seconds: int = Field(default=60, ge=0, le=3600)
    autoscaled: bool = False
    days_kept: float = Field(default=7, ge=0.01, le=10_000)

    @classmethod
    def read(cls, path: Path) -> ClusterSettings:
        """Read a file.

        Raises:
            ConfigError: it cannot be read, or does not describe a cluster.
        """
        try:
            given = yaml.safe_load(path.read_text(encoding="utf-8"))
            return cls.model_validate({} if given is None else given)
        except OSError as error:
            raise ConfigError(f"--cluster {path}: {error.strerror}") from None
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ConfigError(f"--cluster {path} is no YAML: {' '.join(str(error).split())}") from None
        except ValidationError as error:
            raise ConfigError(f"--cluster {path}: {first_fault(error.errors())}") from None


class Placement:
    """Gives components to the cluster.

    Args:
        settings: how tasks are placed.
    """

    def __init__(self, settings: ClusterSettings) -> None:
        self.settings = settings

    def __call__(
        self, component: Callable[..., dsl.PipelineTask], pod: Pod, trainjob: TrainJobSpec | None = None,
        needs: Needs | None = None,
    ) -> Callable[..., dsl.PipelineTask]:  # fmt: skip
        """Return ``component`` as one whose tasks run in such a pod, or have a TrainJob do their training.

        Args:
            component: of the pipeline.
            pod: for its tasks.
            trainjob: that does their work.
            needs: which its tasks are to compare with what the cluster has.
        """

        def task(**arguments: Any) -> dsl.PipelineTask:
            made = component(**arguments)
            self._surround(made)
            self._size(made, pod)
            self._secure(made, pod)
            if trainjob is not None:
                made.set_env_variable("TENFOLD_TRAINJOB", trainjob.to_json())
            if needs is not None:
                kubernetes.add_pod_annotation(made, NEEDS, needs.model_dump_json(exclude_none=True))
                kubernetes.use_field_path_as_env(made, "TENFOLD_NEEDS", f"metadata.annotations['{NEEDS}']")
            return made

        return task

    def needs(self, trainjob: TrainJobSpec | None) -> Needs:
        """Return what the pipeline asks for: pods that infer, and those that train."""
        settings = self.settings
        trains = Demand(gpus=settings.train.gpus)
        if trainjob is not None:
            trains = Demand(gpus=trainjob.gpus_per_node, pods=trainjob.nodes, queue=trainjob.queue)
        return Needs(
            accelerator=settings.accelerator, demands=(Demand(gpus=settings.infer.gpus), trains),
            namespace=None if trainjob is None else trainjob.namespace, autoscaled=settings.autoscaled,
        )  # fmt: skip

    def _surround(self, task: dsl.PipelineTask) -> None:
        """Let the task know its run's identity, addresses and credentials; absent credentials mean the pod's role."""
        kubernetes.use_field_path_as_env(task, "TENFOLD_RUN_ID", "metadata.labels['pipeline/runid']")
        kubernetes.use_config_map_as_env(task, CONFIG_MAP, {name: name for name in ADDRESSES})
        kubernetes.use_config_map_as_env(task, CONFIG_MAP, {name: name for name in OPTIONAL}, optional=True)
        kubernetes.use_secret_as_env(task, SECRET, {name: name for name in CREDENTIALS}, optional=True)

    def _size(self, task: dsl.PipelineTask, pod: Pod) -> None:
        task.set_cpu_request(pod.cpu).set_memory_request(pod.memory).set_memory_limit(pod.memory)
        kubernetes.set_timeout(task, round(3600 * pod.hours))
        if self.settings.retries:
            task.set_retry(
                self.settings.retries, backoff_duration=f"{self.settings.backoff_seconds}s", backoff_factor=2,
                backoff_max_duration="3600s",
            )  # fmt: skip
        if not pod.gpus:
            return
        task.set_accelerator_type(self.settings.accelerator).set_accelerator_limit(pod.gpus)
        kubernetes.add_pod_annotation(task, GPUS, str(pod.gpus))
        kubernetes.use_field_path_as_env(task, "TENFOLD_GPUS", f"metadata.annotations['{GPUS}']")
        for each in self.settings.tolerations:
            kubernetes.add_toleration(task, each.key, each.operator, each.value, each.effect)
        for label, value in self.settings.node_selector.items():
            kubernetes.add_node_selector(task, label, value)

    def _secure(self, task: dsl.PipelineTask, pod: Pod) -> None:
        """Fit Pod Security's ``restricted``; KFP drops capabilities and forbids privileges by itself."""
        user = self.settings.user
        kubernetes.set_security_context(task, run_as_user=user, run_as_group=user, run_as_non_root=True)
        kubernetes.empty_dir_mount(task, volume_name="tmp", mount_path="/tmp", size_limit=pod.disk)  # noqa: S108
        if pod.shm is not None:
            memory = {"medium": "Memory", "size_limit": pod.shm}
            kubernetes.empty_dir_mount(task, volume_name="shm", mount_path="/dev/shm", **memory)  # noqa: S108


def launcher(pod: Pod, trainjob: TrainJobSpec) -> Pod:
    """Return the pod of a task that waits for a TrainJob: as long in a queue, and as long at work, as its deadline."""
    return pod.model_copy(update={"hours": 2 * trainjob.deadline_seconds / 3600 + 1})
