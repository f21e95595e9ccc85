"""The calls to the Kubernetes API server: each with a time limit, bounded retries and errors that say what is missing.

The connection, the lookup of the runtime and the models are the Kubeflow SDK's (``TrainerClient``). Jobs, pods and logs
are read through the Kubernetes client that it holds, because the SDK gives no conditions of a job, waits without a time
limit for an API server that accepts a connection and stays silent, and calls a job that a queue has let go on
"Created" for as long as it runs.
"""

from __future__ import annotations

import logging
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tenfold.errors import ConfigError, TrainJobError, redact
from tenfold.trainjob.refusals import AbsentError, PresentError, passing
from tenfold.trainjob.spec import GROUP, NODE, VERSION

INDEX_LABEL = "batch.kubernetes.io/job-completion-index"
_PLURAL = "trainjobs"
_LIMITS = (10, 30)  # seconds for connecting and for each answer
_LOG_LIMITS = (10, 300)  # a training reports once a minute
_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


class Cluster:
    """The jobs of one namespace.

    Args:
        namespace: of the jobs; without one that of the own pod, or of the kubeconfig's current context.
        patience: seconds for which a call is tried again while the API server is away.
        pause: the first pause between two tries is a fifth of it, and they double up to six times it.
        tell: told once when the API server stops answering.
        context: as for :func:`connection`.

    Raises:
        ConfigError: there is neither a kubeconfig nor a service account.
        TrainJobError: the API server is away for longer than ``patience``.
    """

    def __init__(
        self, namespace: str | None, patience: float, pause: float, tell: Callable[[str], None],
        context: str | None = None,
    ) -> None:  # fmt: skip
        from kubeflow.common.types import KubernetesBackendConfig
        from kubeflow.trainer import TrainerClient

        self._patience, self._pause, self._tell = patience, pause, tell
        configuration, self.namespace = connection(namespace, context)
        # it reads a ConfigMap that decides nothing, and warns where the role does not allow that
        logging.getLogger("kubeflow.trainer.backends.kubernetes.backend").setLevel(logging.ERROR)

        config = KubernetesBackendConfig(namespace=self.namespace, client_configuration=configuration)
        self._client = self._call("connect", lambda: _bounded(lambda: TrainerClient(config), sum(_LIMITS)))
        self._core, self._custom = self._client.backend.core_api, self._client.backend.custom_api
        self._where = {"group": GROUP, "version": VERSION, "namespace": self.namespace, "plural": _PLURAL}

    def runtime_kind(self, name: str) -> str:
        """Return whether the runtime is a ``TrainingRuntime`` or a ``ClusterTrainingRuntime``.

        Raises:
            TrainJobError: there is none of that name, or it trains with a program of its own.
        """
        try:
            found = self._call("get trainingruntimes", lambda: self._client.get_runtime(name))
        except AbsentError:
            raise TrainJobError(
                f"there is no TrainingRuntime '{name}' in the namespace {self.namespace} and no ClusterTrainingRuntime "
                f"of that name; `kubectl get clustertrainingruntimes` lists those that there are: compile with one of "
                "them (--runtime), or let an administrator install Kubeflow Trainer's default runtimes"
            ) from None
        if found.trainer.trainer_type.value != "CustomTrainer":
            raise TrainJobError(f"the runtime '{name}' runs a program of its own; take one for torch (--runtime)")
        return str(found.kind.value)

    def get(self, name: str) -> dict[str, Any] | None:
        """Return the job, or None where there is none."""
        try:
            return self._job("get", self._custom.get_namespaced_custom_object, name=name)
        except AbsentError:
            return None

    def create(self, body: dict[str, Any]) -> bool:
        """Make the job; return False where one of its name is there already.

        That one may be our own, from a try whose answer was lost.
        """
        try:
            self._job("create", self._custom.create_namespaced_custom_object, body=body)
        except PresentError:
            return False
        except AbsentError:
            raise TrainJobError(f"there is no namespace {self.namespace}") from None
        return True

    def delete(self, name: str, uid: str | None = None) -> bool:
        """Let the job be deleted once its pods are; return False where it is not there, or not the one with ``uid``."""
        body: dict[str, Any] = {"propagationPolicy": "Foreground"}
        if uid is not None:
            body["preconditions"] = {"uid": uid}
        try:
            self._job("delete", self._custom.delete_namespaced_custom_object, name=name, body=body)
        except (AbsentError, PresentError):
            return False
        return True

    def names(self, selector: str) -> list[str]:
        """Return the names of the jobs whose labels fit ``selector``."""
        found = self._job("list", self._custom.list_namespaced_custom_object, label_selector=selector)
        return [str(item["metadata"]["name"]) for item in found["items"]]

    def pods(self, name: str, first: bool) -> list[dict[str, Any]]:
        """Return the training pods of a job, or those of its ``first`` node alone; from one try, the newest last.

        Raises:
            Exception: any of the Kubernetes client's; a job runs whether its pods can be listed or not.
        """
        selector = pod_selector(name) + (f",{INDEX_LABEL}=0" if first else "")
        found = self._core.list_namespaced_pod(self.namespace, label_selector=selector, _request_timeout=_LIMITS)
        pods: list[dict[str, Any]] = self._core.api_client.sanitize_for_serialization(found)["items"]
        return sorted(pods, key=lambda pod: str(pod["metadata"].get("creationTimestamp", "")))

    def log(self, pod: str, since_seconds: int | None) -> Iterator[str]:
        """Yield the lines of a pod's log as they come, each behind its time, until the container ends.

        Raises:
            Exception: any of the Kubernetes client's, and TimeoutError where no line came for minutes.
        """
        from urllib3.exceptions import ReadTimeoutError

        given = {} if since_seconds is None else {"since_seconds": since_seconds}
        stream = self._core.read_namespaced_pod_log(
            pod, self.namespace, container=NODE, follow=True, timestamps=True, _preload_content=False,
            _request_timeout=_LOG_LIMITS, **given,
        )  # fmt: skip
        try:
            for line in stream:
                yield line.decode(errors="replace").rstrip("\n")
        except ReadTimeoutError as error:
            raise TimeoutError from error
        finally:
            stream.close()

    def _job(self, verb: str, function: Callable[..., Any], **given: Any) -> dict[str, Any]:
        def call() -> dict[str, Any]:
            answer = function(**self._where, **given, _request_timeout=_LIMITS)
            if not isinstance(answer, dict):  # the client hands over what it could not parse
                raise ConnectionError("the API server's answer was cut off")
            return answer

        result: dict[str, Any] = self._call(f"{verb} {_PLURAL}", call)
        return result

    def _call(self, act: str, function: Callable[[], Any]) -> Any:
        """Return what ``function`` returns; what may pass is tried again for ``patience`` seconds."""
        end = time.monotonic() + self._patience
        pause, told = self._pause / 5, False
        while True:
            try:
                return function()
            except Exception as error:
                trouble = passing(act, error)
            if time.monotonic() > end:
                raise TrainJobError(
                    f"the Kubernetes API server did not answer for {self._patience:.0f} s ({act}: {trouble}); a job "
                    "that was made goes on by itself, and the same again waits for it",
                    again=True,
                )
            if not told:
                self._tell(f"the Kubernetes API server does not answer ({act}: {trouble}); asked again until it does")
                told = True
            time.sleep(pause * random.uniform(0.5, 1.5))  # noqa: S311
            pause = min(2 * pause, 6 * self._pause)


def pod_selector(name: str) -> str:
    """Return the label selector of a job's training pods, which Trainer makes through a JobSet of the job's name."""
    return f"jobset.sigs.k8s.io/jobset-name={name},jobset.sigs.k8s.io/replicatedjob-name={NODE}"


def own_namespace() -> str:
    """Return the namespace of the pod that this process runs in; empty where it runs in none."""
    return _ACCOUNT.read_text().strip() if _ACCOUNT.is_file() else ""


def address(context: str | None = None) -> str:
    """Return the address of the API server that :func:`connection` leads to.

    Raises:
        ConfigError: as there.
    """
    return redact(str(connection(None, context)[0].host))


def connection(namespace: str | None, context: str | None = None) -> tuple[Any, str]:
    """Return the client's configuration and the namespace: KUBECONFIG's, else the own pod's, else ~/.kube/config's.

    Args:
        namespace: to return instead of the one that was found.
        context: of the kubeconfig, which is then read in a pod too; without one its current context.

    Raises:
        ConfigError: there is neither a kubeconfig nor a service account, or the kubeconfig has no such context.
    """
    from kubernetes import client, config

    configuration = client.Configuration()
    configuration.retries = False  # ours are bounded in time, and say so
    file = os.environ.get("KUBECONFIG") or None
    try:
        own = own_namespace()
        if file is None and context is None and own:
            config.load_incluster_config(client_configuration=configuration)
        else:
            config.load_kube_config(config_file=file, context=context, client_configuration=configuration)
            contexts, current = config.list_kube_config_contexts(file)
            chosen = next((each for each in contexts if each["name"] == context), current)
            own = chosen["context"].get("namespace", "default")
    except config.ConfigException as error:
        raise ConfigError(f"no Kubernetes cluster to make TrainJobs in: {error}") from None
    return configuration, namespace or own


def _bounded(function: Callable[[], Any], seconds: float) -> Any:
    """Return what ``function`` returns within ``seconds``; the SDK's first request has no time limit."""
    found: list[Any] = []
    failed: list[Exception] = []

    def work() -> None:
        try:
            found.append(function())
        except Exception as error:
            failed.append(error)

    thread = threading.Thread(target=work, daemon=True, name="trainjob-connect")
    thread.start()
    thread.join(seconds)
    if failed:
        raise failed[0]
    if not found:
        raise TimeoutError(f"no answer within {seconds} s")
    return found[0]
