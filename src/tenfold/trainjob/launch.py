"""Make a TrainJob or attach to it, and wait for it.

A job outlives its launcher: it is deleted only when it has failed and the stage is tried again, or by :func:`reap`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tenfold.errors import TrainJobError, redact
from tenfold.progress import Reporter, clock, count
from tenfold.trainjob.cluster import INDEX_LABEL, Cluster, pod_selector
from tenfold.trainjob.logs import LogStream
from tenfold.trainjob.refusals import answer, missing_rule
from tenfold.trainjob.spec import NODE, RUN_LABEL, TrainJobSpec, job_name, manifest, run_label


def run_trainjob(
    spec: TrainJobSpec,
    stage: str,
    run_id: str,
    command: Sequence[str],
    variables: Mapping[str, str],
    reporter: Reporter,
    *,
    left: Callable[[], bool] = lambda: True,
    poll_seconds: float = 5.0,
    patience_seconds: float = 900.0,
    margin_seconds: float = 900.0,
    note_seconds: float = 60.0,
) -> None:
    """Run a stage as a TrainJob: return when it is complete.

    The job's name is the stage's with the run's id. One that is there and has not ended is waited for, one that is
    complete is this call's result, one that failed, or whose result is gone, is deleted and made again.

    Args:
        spec: where and on how much it runs.
        stage: the task's name.
        run_id: identity of the pipeline run.
        command: what each pod executes.
        variables: plain values for the pods' environment; addresses and credentials reach them by reference.
        reporter: told what the job waits for; the first pod's log goes to standard error.
        left: whether a job that is complete left its result, and it is still there.
        poll_seconds: pause between two looks at the job.
        patience_seconds: how long the API server may be away, and a failed job may take to be gone.
        margin_seconds: how much longer than the deadline to wait: for a job to start, and for a running one to end.
        note_seconds: how often to report what a job waits for.

    Raises:
        TrainJobError: the job failed, was deleted or ran out of time; or a right, the runtime or the custom resource is
            missing.
        ConfigError: there is no cluster to talk to.
    """
    cluster = Cluster(spec.namespace, patience_seconds, poll_seconds, reporter.warn)
    wait = _Wait(cluster, spec, job_name(stage, run_id), reporter, poll_seconds)
    job = wait.obtain(stage, run_id, command, variables, patience_seconds, left)
    if condition(job, "Complete") is not None:
        reporter.note(f"{wait.called} is complete already")
        return
    wait.until_ended(job, margin_seconds, note_seconds)


def reap(run_id: str, namespace: str | None = None, context: str | None = None) -> list[str]:
    """Delete all jobs of a run, running ones too, and return their names.

    Args:
        run_id: identity of the pipeline run, as the label ``tenfold.dev/run-id`` has it.
        namespace: of the jobs; without one that of the own pod, or of the kubeconfig's context.
        context: of the kubeconfig; without one the own pod's cluster, or the current context.

    Raises:
        TrainJobError: a right or the custom resource is missing, or the API server is away.
        ConfigError: there is no cluster to talk to.
    """
    cluster = Cluster(namespace, 60.0, 5.0, lambda text: None, context)
    return [name for name in cluster.names(f"{RUN_LABEL}={run_label(run_id)}") if cluster.delete(name)]


def condition(job: dict[str, Any], kind: str) -> dict[str, Any] | None:
    """Return the job's condition ``kind`` where it is true."""
    held = (job.get("status") or {}).get("conditions") or []
    return next((each for each in held if each["type"] == kind and each["status"] == "True"), None)


class _Wait:
    def __init__(self, cluster: Cluster, spec: TrainJobSpec, name: str, reporter: Reporter, poll: float) -> None:
        self._cluster, self._spec, self._name, self._reporter, self._poll = cluster, spec, name, reporter, poll
        self._logs = LogStream(cluster, reporter, poll)
        self._blind = False
        self.called = f"TrainJob {cluster.namespace}/{name}"
        self._look = (
            f"`kubectl logs -n {cluster.namespace} -l {pod_selector(name)} -c node --prefix --tail=100` shows what its "
            "pods wrote"
        )

    def obtain(
        self, stage: str, run_id: str, command: Sequence[str], variables: Mapping[str, str], patience: float,
        left: Callable[[], bool],
    ) -> dict[str, Any]:  # fmt: skip
        """Return the job of this name, made if there is none, or if it failed or its result is gone."""
        made = False
        end = time.monotonic() + patience
        while True:
            job = self._cluster.get(self._name)
            if job is None and made:
                raise self._gone()
            if job is None:
                kind = self._cluster.runtime_kind(self._spec.runtime)
                made = self._cluster.create(manifest(self._spec, stage, run_id, command, variables, kind))
                end = time.monotonic() + patience
                continue
            metadata = job["metadata"]
            failed, complete = condition(job, "Failed"), condition(job, "Complete")
            spent = failed is not None or (complete is not None and not left())
            if "deletionTimestamp" not in metadata and (made or not spent):
                break
            if "deletionTimestamp" not in metadata and self._cluster.delete(self._name, metadata.get("uid")):
                why = "is complete, and its result is gone" if failed is None else f"failed before ({_text(failed)})"
                self._reporter.note(f"{self.called} {why}; it is deleted and made again")
                continue
            if time.monotonic() > end:
                raise TrainJobError(
                    f"{self.called} is being deleted for {patience:.0f} s and is still there; `kubectl describe "
                    f"trainjob -n {self._cluster.namespace} {self._name}` shows which finalizer holds it",
                    again=True,
                )
            time.sleep(self._poll)
        size = f"{count(self._spec.nodes, 'node')} of {count(self._spec.gpus_per_node, 'GPU')}"
        self._reporter.note(f"{self.called}: {f'made, {size}' if made else 'is there already; attached to it'}")
        return job

    def until_ended(self, job: dict[str, Any], margin: float, note: float) -> None:
        """Show the job's log and what it waits for, until it is complete."""
        began = told = time.monotonic()  # not the job's own times: clocks may be a day apart
        running = False
        limit = self._spec.deadline_seconds + margin
        while True:
            pods = self._pods(first=running)
            if condition(job, "Complete") is not None:
                self._logs.finish()
                return
            failed = condition(job, "Failed")
            if failed is not None:
                self._logs.finish()
                raise TrainJobError(f"{self.called} failed: {_text(failed)}; {self._look}", again=True)
            now = time.monotonic()
            if not running and _started(job, pods, self._spec.nodes):
                running, began = True, now
                self._reporter.note(f"{self.called}: all {count(self._spec.nodes, 'pod')} run")
            elif running and condition(job, "Suspended") is not None:  # its deadline begins anew when it goes on
                running, began = False, now
                self._reporter.note(f"{self.called} is suspended")
            if now - began > limit:
                raise TrainJobError(self._given_up(job, pods, running, now - began), again=True)
            if not running and now - told >= note:
                told = now
                self._reporter.note(f"{self.called} waits for {clock(now - began)}: {_reasons(job, pods)}")
            time.sleep(self._poll)
            found = self._cluster.get(self._name)
            if found is None:
                raise self._gone()
            job = found

    def _pods(self, first: bool) -> list[dict[str, Any]]:
        """Return the job's pods, or the ``first`` alone, and follow that one's log; none where none can be listed."""
        from kubernetes.client import ApiException

        try:
            pods = self._cluster.pods(self._name, first)
        except Exception as error:  # the job's own state, which comes next, decides what an outage means
            _, message, _ = answer(error) if isinstance(error, ApiException) else (0, f"{error}", {})
            if not self._blind:
                self._blind = True
                self._reporter.note(
                    f"the pods of {self.called} could not be listed, and its log is not shown until they can be "
                    f"({message}{missing_rule(message)})"
                )
            return []
        leading = [pod for pod in pods if pod["metadata"]["labels"].get(INDEX_LABEL) == "0"]
        if leading and _phase(leading[-1]) != "Pending":
            self._logs.follow(leading[-1]["metadata"]["name"])
        return pods

    def _gone(self) -> TrainJobError:
        return TrainJobError(
            f"{self.called} is gone: it was deleted while it was waited for; trying this stage again makes it again, "
            "and its training goes on from the last checkpoint",
            again=True,
        )

    def _given_up(self, job: dict[str, Any], pods: Sequence[dict[str, Any]], running: bool, waited: float) -> str:
        state = "runs" if running else "was never started: it waits"
        namespace, label = self._cluster.namespace, f"{RUN_LABEL}={job['metadata']['labels'][RUN_LABEL]}"
        return (
            f"{self.called} {state} for {clock(waited)}, and its deadline is {clock(self._spec.deadline_seconds)} "
            f"({_reasons(job, pods)}). It was left in place: the same again waits for it, and `kubectl "
            f"delete trainjob -n {namespace} -l {label}` removes it"
        )


def _started(job: dict[str, Any], pods: Sequence[dict[str, Any]], nodes: int) -> bool:
    """Return whether all pods of a job run or have run, by themselves or by its status."""
    counted = [each for each in (job.get("status") or {}).get("jobsStatus") or [] if each["name"] == NODE]
    if any(each["ready"] + each["succeeded"] + each["failed"] > 0 for each in counted):
        return True
    return sum(_phase(pod) in ("Running", "Succeeded", "Failed") for pod in pods) >= nodes


def _phase(pod: dict[str, Any]) -> str:
    return str(pod.get("status", {}).get("phase", "Pending"))


def _text(condition: dict[str, Any] | None) -> str:
    return redact(f"{condition['reason']}: {condition['message']}") if condition else ""


def _reasons(job: dict[str, Any], pods: Sequence[dict[str, Any]]) -> str:
    """Return what the conditions of a job, and of a pod of it that waits, say."""
    held = (job.get("status") or {}).get("conditions") or []
    said = [f"{each['type']} is {each['status']} ({_text(each)})" for each in held]
    waiting = [pod for pod in pods if _phase(pod) == "Pending"]
    if pods:
        said.append(f"{len(pods) - len(waiting)} of {count(len(pods), 'pod')} started")
    if waiting:
        status = waiting[0].get("status", {})
        containers = [each.get("state", {}).get("waiting") for each in status.get("containerStatuses") or []]
        why = [each for each in [*(status.get("conditions") or []), *containers] if each and each.get("message")]
        said += [f"{waiting[0]['metadata']['name']}: {_text({'reason': '', **each})}" for each in why[:2]]
    return "; ".join(said) or "it has no conditions and no pods yet: does Kubeflow Trainer's controller run?"
