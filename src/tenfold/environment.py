"""What reaches a process by its environment: where it runs, never what it computes.

Nothing here may change a result, so nothing here enters a fingerprint or a pipeline parameter
(run ids, addresses, credentials, device, threads, log cadence). On a cluster the pod's environment
carries these; locally they are inherited from the command line's process.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import uuid
from dataclasses import dataclass
from pathlib import Path

from tenfold.errors import ConfigError

# MLflow's telemetry sets and removes a variable of the environment in several threads, and now and then a call to the
# tracking server fails by it.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
# Its client prints an address for each run that ends, password and all.
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")


#: Where a cluster's pods find addresses, settings and credentials, by fixed names; the keys are the variables' names.
CONFIG_MAP, SECRET = "tenfold-env", "tenfold-s3"
ADDRESSES = ("TENFOLD_STORE", "MLFLOW_TRACKING_URI")
OPTIONAL = ("MLFLOW_EXPERIMENT_NAME", "AWS_ENDPOINT_URL", "AWS_DEFAULT_REGION", "TENFOLD_CACHE_BYTES",
            "TENFOLD_CHECKPOINT_SECONDS", "TENFOLD_RESUME_RESIZED", "TENFOLD_TRACKING_PATIENCE")  # fmt: skip
CREDENTIALS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")


@dataclass(frozen=True)
class Environment:
    """The surroundings of one process.

    Attributes:
        home: folder for everything that a local run leaves behind (``TENFOLD_HOME``, default ``.tenfold``).
        store: URI of the store of shards, manifests and checkpoints (``TENFOLD_STORE``).
        tracking_uri: MLflow's address (``MLFLOW_TRACKING_URI``, default a SQLite file in ``home``).
        experiment: MLflow experiment (``MLFLOW_EXPERIMENT_NAME``).
        experiment_id: of KFP's choice (``MLFLOW_EXPERIMENT_ID``), where KFP keeps runs in MLflow by itself; it wins.
        mlflow_run: this task's run there (``MLFLOW_RUN_ID``), which KFP made; None: ours to make.
        tracking_patience: seconds that a stage waits at its end for an MLflow that is away, before it leaves to the
            next one what could not be sent (``TENFOLD_TRACKING_PATIENCE``).
        run_id: identity of the pipeline run (``TENFOLD_RUN_ID``; on Kubeflow the pod's run id label).
        retry: which further try of its task this is (``KFP_RETRY_INDEX``, which KFP sets); 0 for the first.
        device: ``cpu``, ``cuda`` or ``auto`` (``TENFOLD_DEVICE``).
        threads: threads for computing (``TENFOLD_THREADS``, default: the cores that this process, or its container, may
            use).
        gpus: that this process must see (``TENFOLD_GPUS``, from the pod's annotation); None: whatever there is.
        needs: the GPUs that the pipeline asks for, for preflight to look at (``TENFOLD_NEEDS``, from the pod's
            annotation, a :class:`tenfold.trainjob.Needs` as JSON).
        processes: that train together on this machine (``TENFOLD_PROCESSES``, default: one for each GPU, else one).
        resume_resized: go on from a checkpoint of another number of processes (``TENFOLD_RESUME_RESIZED``).
        checkpoint_seconds: at most this much work is lost by a kill (``TENFOLD_CHECKPOINT_SECONDS``).
        cache_bytes: at most this much of shards from afar is kept on local disk (``TENFOLD_CACHE_BYTES``).
        events: file to which progress is appended as JSON lines (``TENFOLD_EVENTS``).
        owner: process whose death ends this one (``TENFOLD_OWNER_PID``), set by the local runner.
        trainjob: the TrainJob that a training stage runs as (``TENFOLD_TRAINJOB``, a
            :class:`tenfold.trainjob.TrainJobSpec` as JSON); without it the stage trains on this machine.
    """

    home: Path
    store: str
    tracking_uri: str
    experiment: str
    experiment_id: str | None
    mlflow_run: str | None
    tracking_patience: float
    run_id: str
    retry: int
    device: str
    threads: int
    gpus: int | None
    needs: str | None
    processes: int | None
    resume_resized: bool
    checkpoint_seconds: float
    cache_bytes: int
    events: Path | None
    owner: int | None
    trainjob: str | None

    @classmethod
    def read(cls) -> Environment:
        """Read the surroundings from ``os.environ``, with the defaults of a laptop."""
        get = os.environ.get
        home = Path(get("TENFOLD_HOME", ".tenfold")).absolute()
        events = get("TENFOLD_EVENTS")
        return cls(
            home=home,
            store=get("TENFOLD_STORE") or (home / "store").as_uri(),
            tracking_uri=get("MLFLOW_TRACKING_URI") or f"sqlite:///{home / 'mlflow.db'}",
            experiment=get("MLFLOW_EXPERIMENT_NAME") or "tenfold",
            experiment_id=get("MLFLOW_EXPERIMENT_ID") or None,
            mlflow_run=get("MLFLOW_RUN_ID") or None,
            tracking_patience=_number("TENFOLD_TRACKING_PATIENCE", 120.0),
            run_id=checked_run_id(get("TENFOLD_RUN_ID") or f"local-{uuid.uuid4().hex[:12]}", "TENFOLD_RUN_ID"),
            retry=_count("KFP_RETRY_INDEX", 0),
            device=_device(get("TENFOLD_DEVICE") or "auto"),
            threads=_count("TENFOLD_THREADS", cores(), least=1),
            gpus=_count("TENFOLD_GPUS", 0) or None,
            needs=get("TENFOLD_NEEDS") or None,
            processes=_count("TENFOLD_PROCESSES", 0) or None,
            resume_resized=bool(_number("TENFOLD_RESUME_RESIZED", 0)),
            checkpoint_seconds=_number("TENFOLD_CHECKPOINT_SECONDS", 60.0),
            cache_bytes=_count("TENFOLD_CACHE_BYTES", 100_000_000_000),
            events=Path(events) if events else None,
            owner=_count("TENFOLD_OWNER_PID", 0) or None,
            trainjob=get("TENFOLD_TRAINJOB") or None,
        )


def checked_run_id(text: str, where: str) -> str:
    """Return ``text`` if it can be the id of a run: it becomes a folder, part of an object's key, and a tag in MLflow.

    Args:
        text: the id.
        where: that gave it.

    Raises:
        ConfigError: it cannot.
    """
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", text) is None:
        raise ConfigError(f"{where} is {text!r}, which is no id of a run: letters, digits, '.', '_' and '-' alone")
    return text


def allocator() -> dict[str, str]:
    """Return variables that make glibc's allocator keep big blocks, in huge pages where the kernel has them.

    A training step asks for the same blocks again and again. They work from a process's start on.
    """
    if "GLIBC_TUNABLES" in os.environ:
        return {}
    settings = {"hugetlb": 1, "mmap_threshold": 1 << 30, "trim_threshold": 1 << 32, "top_pad": 1 << 26}
    return {"GLIBC_TUNABLES": ":".join(f"glibc.malloc.{name}={value}" for name, value in settings.items())}


def _number(name: str, default: float, least: float = 0.0) -> float:
    text = os.environ.get(name)
    try:
        value = float(text) if text else default
    except ValueError:
        raise ConfigError(f"{name} is '{text}', which is no number") from None
    if not least <= value < math.inf:
        raise ConfigError(f"{name} is '{text}'; it must be a number from {least:g} on")
    return value


def _count(name: str, default: int, least: int = 0) -> int:
    value = _number(name, default, least)
    if value != int(value):
        raise ConfigError(f"{name} is '{os.environ[name]}'; it must be a whole number")
    return int(value)


def cores(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Return how many cores this process may use: its affinity, and a container's quota where that is less.

    Args:
        cgroup: where control groups are mounted, of version 2 (``cpu.max``) or 1.
    """
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for names in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
        with contextlib.suppress(OSError, ValueError):  # none is set, or it is "max"
            quota, period = " ".join((cgroup / name).read_text() for name in names).split()
            if int(quota) > 0:
                return max(1, min(count, round(int(quota) / int(period))))
    return count


def _device(name: str) -> str:
    if name not in {"auto", "cpu", "cuda"}:
        raise ConfigError(f"TENFOLD_DEVICE is '{name}'; it must be auto, cpu or cuda")
    return name
