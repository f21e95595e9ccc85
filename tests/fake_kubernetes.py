"""A small Kubernetes API server with Kubeflow Trainer's resources, on loopback.

It holds TrainJobs, one runtime, pods and their logs. A job that is sent is checked as the real server and Trainer's
webhook do: by the custom resource's schema, with unknown fields refused. A job lives by a script: each time it is read
it goes one step further, and stays at the last. So no test waits for a clock.
"""

from __future__ import annotations

import json
import re
import socket
import struct
import threading
import time
import uuid
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import jsonschema
import yaml

SCHEMA = Path(__file__).with_name("trainjob_schema.json")
NAMESPACE = "team"
TOKEN = "the-launcher's-token"
_TRAINER = f"/apis/trainer.kubeflow.org/v1alpha1/namespaces/{NAMESPACE}"
_RESERVED = {"PET_NNODES", "PET_NPROC_PER_NODE", "PET_NODE_RANK", "PET_MASTER_ADDR", "PET_MASTER_PORT"}


class Job:
    """One TrainJob: what was sent, and how its life goes."""

    def __init__(self, body: dict[str, Any], life: list[str]) -> None:
        self.body, self.life, self.uid = body, list(life), str(uuid.uuid4())
        self.deleting = 0  # reads that still find it after it was deleted

    def step(self) -> str:
        return self.life.pop(0) if len(self.life) > 1 else self.life[0]

    @property
    def name(self) -> str:
        return str(self.body["metadata"]["name"])

    def resource(self, stage: str) -> dict[str, Any]:
        metadata = {**self.body["metadata"], "namespace": NAMESPACE, "uid": self.uid,
                    "creationTimestamp": "2026-01-01T00:00:00Z"}  # fmt: skip
        if self.deleting:
            metadata["deletionTimestamp"] = "2026-01-01T01:00:00Z"
        conditions = {
            "suspended": [("Suspended", "Suspended", "TrainJob is suspended")],
            "complete": [("Complete", "AllJobsCompleted", "jobset completed successfully")],
            "failed": [("Failed", "FailedJobs", "jobset failed due to one or more job failures")],
        }.get(stage, [])
        status = [
            {"type": kind, "status": "True", "reason": reason, "message": message,
             "lastTransitionTime": "2026-01-01T00:00:00Z"}
            for kind, reason, message in conditions
        ]  # fmt: skip
        running = int(stage == "running")
        counts = {"name": "node", "active": running, "ready": running, "succeeded": 0, "failed": 0, "suspended": 0}
        told = {"conditions": status} if status else {"jobsStatus": [counts]} if running else {}
        return {**self.body, "metadata": metadata, **({"status": told} if told else {})}


class FakeKubernetes:
    """The server. Tests set what goes wrong, and read what was asked.

    Attributes:
        lives: scripts of the jobs to be made, in order: steps ``pending``, ``suspended``, ``running``, ``complete``,
            ``failed`` and ``gone``. The last script serves all further jobs.
        faults: what the next calls that fit get instead of an answer: a status, ``reset`` or ``cut``.
        forbidden: pairs of verb and resource that the role lacks.
        log: what each pod writes.
        log_breaks: how many streams end in the middle, after their first line.
        requests: every call as (verb, resource).
        sent: every job that was made.
    """

    def __init__(self) -> None:
        self.lives = [["pending", "running", "complete"]]
        self.jobs: dict[str, Job] = {}
        self.stage: dict[str, str] = {}
        self.faults: list[tuple[str, str, int | str]] = []
        self.forbidden: set[tuple[str, str]] = set()
        self.runtimes = {"torch-distributed"}
        self.installed = True
        self.objects: dict[tuple[str, str], dict[str, Any]] = {}  # (resource, name; "" for all of them) → answer
        self.lost_answers = 0  # creations that happen, and are not answered
        self.deletion_reads = 1
        self.log = ["pretrain: started", "pretrain: done in 0:01"]
        self.log_breaks = 0
        self.requests: list[tuple[str, str]] = []
        self.sent: list[dict[str, Any]] = []
        self.since: list[str | None] = []
        self.lock = threading.RLock()
        self.schema = strict(json.loads(SCHEMA.read_text()))
        handler = type("Handler", (_Handler,), {"fake": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()
        self.address = f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def kubeconfig(self, path: Path) -> Path:
        """Write a kubeconfig for this server."""
        path.write_text(
            yaml.safe_dump(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "current-context": "fake",
                    "clusters": [{"name": "fake", "cluster": {"server": self.address}}],
                    "users": [{"name": "launcher", "user": {"token": TOKEN}}],
                    "contexts": [
                        {"name": "fake", "context": {"cluster": "fake", "user": "launcher", "namespace": NAMESPACE}}
                    ],
                }
            )
        )
        return path

    def count(self, verb: str, resource: str = "trainjobs") -> int:
        return self.requests.count((verb, resource))

    def refusal(self, body: dict[str, Any]) -> tuple[int, str] | None:
        """Return why the server, or Trainer's webhook, refuses a job; None where it takes it."""
        for error in jsonschema.Draft202012Validator(self.schema).iter_errors(body):
            unknown = error.validator == "additionalProperties"
            return (400 if unknown else 422), f"{'/'.join(map(str, error.absolute_path))}: {error.message}"[:500]
        if not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", body["metadata"]["name"]):
            return 422, "metadata.name must match RFC 1035 DNS label format"
        trainer = body["spec"].get("trainer", {})
        pod = f"{body['metadata']['name']}-node-0-{trainer.get('numNodes', 1) - 1}-xxxxx"
        if len(pod) > 63:
            return 403, f'admission webhook "vjobset.kb.io" denied the request: the pod name {pod} is too long'
        webhook = 'admission webhook "validator.trainjob.trainer.kubeflow.org" denied the request: '
        if _RESERVED & {each["name"] for each in trainer.get("env", [])}:
            return 403, webhook + "spec.trainer.env: must not have reserved envs"
        for patch in body["spec"].get("runtimePatches", []):
            for job in patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]:
                for container in job["template"]["spec"]["template"]["spec"].get("containers", []):
                    if container.get("env"):
                        return 403, webhook + "spec.runtimePatches: must not have envs for the node containers"
        return None


def strict(schema: Any) -> Any:
    """Return an OpenAPI schema in JSON schema's terms that refuses unknown fields, as the API server does."""
    if isinstance(schema, list):
        return [strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: value if key == "enum" else strict(value) for key, value in schema.items()}
    if isinstance(made.get("properties"), dict) and "additionalProperties" not in made and "type" in made:
        made["additionalProperties"] = False
    return made


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # head and body in one packet
    fake: FakeKubernetes

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._serve("get")

    def do_POST(self) -> None:
        self._serve("create")

    def do_DELETE(self) -> None:
        self._serve("delete")

    def _serve(self, verb: str) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length)) if length else {}
        url = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        found = re.fullmatch(
            r"/(?:api/v1|apis/(?P<group>[\w.-]+)/\w+)(?:/namespaces/(?P<namespace>[\w-]+))?/(?P<kind>[a-z]+)"
            r"(?:/(?P<name>[\w.-]+))?(?P<log>/log)?",
            url.path,
        )
        if found is None or self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._status(401, "Unauthorized")
        group, name, resource = found["group"] or "", found["name"] or "", found["kind"] + (found["log"] or "")
        verb = "list" if verb == "get" and not name else verb
        with self.fake.lock:
            self.fake.requests.append((verb, resource))
            fault = next((each for each in self.fake.faults if each[:2] == (verb, resource)), None)
            if fault is not None:
                self.fake.faults.remove(fault)
        if fault is not None:
            return self._fail(fault[2])
        if (verb, resource) in self.fake.forbidden:
            where = "at the cluster scope" if found["namespace"] is None else f'in the namespace "{found["namespace"]}"'
            return self._status(
                403,
                f'{resource}.{group} "{name}" is forbidden: User "system:serviceaccount:{NAMESPACE}:pipeline-runner" '
                f'cannot {verb} resource "{resource}" in API group "{group}" {where}',
            )
        if group and not self.fake.installed:
            return self._send(404, b"404 page not found\n", "text/plain")
        if (resource, name) in self.fake.objects:
            return self._json(200, self.fake.objects[resource, name])
        with self.fake.lock:
            if resource == "trainjobs":
                return self._jobs(verb, name, body, query)
            if resource == "pods":
                return self._pods(query)
        if resource == "pods/log":
            return self._log(name, query)
        if resource == "clustertrainingruntimes" and name in self.fake.runtimes:
            return self._json(200, _runtime(name))
        return self._absent(group, resource, name)

    def _jobs(self, verb: str, name: str, body: dict[str, Any], query: dict[str, str]) -> None:
        fake = self.fake
        if verb == "list":
            key, _, value = query.get("labelSelector", "").partition("=")
            fit = [job for job in fake.jobs.values() if job.body["metadata"]["labels"].get(key) == value]
            return self._json(200, {"kind": "TrainJobList", "items": [job.resource("pending") for job in fit]})
        if verb == "create":
            refusal = fake.refusal(body)
            if refusal is not None:
                return self._status(*refusal)
            if body["metadata"]["name"] in fake.jobs:
                return self._status(409, "already exists", {"name": body["metadata"]["name"]})
            life = fake.lives.pop(0) if len(fake.lives) > 1 else fake.lives[0]
            job = fake.jobs[body["metadata"]["name"]] = Job(body, life)
            fake.stage[job.name] = "pending"
            fake.sent.append(body)
            if fake.lost_answers:
                fake.lost_answers -= 1
                return self._fail("reset")
            return self._json(201, job.resource("pending"))
        found = fake.jobs.get(name)
        if found is None:
            return self._absent("trainer.kubeflow.org", "trainjobs", name)
        if verb == "delete":
            wanted = body.get("preconditions", {}).get("uid")
            if wanted is not None and wanted != found.uid:
                return self._status(409, "the UID in the precondition does not match", {"name": name})
            found.deleting = fake.deletion_reads
            if not found.deleting:
                del fake.jobs[name]
            return self._json(200, {"kind": "Status", "status": "Success"})
        stage = fake.stage[name] if found.deleting else found.step()
        fake.stage[name] = stage
        resource = found.resource(stage)
        if stage == "gone" or found.deleting == 1:
            del fake.jobs[name]
        found.deleting = max(found.deleting - 1, 0)
        return self._absent("trainer.kubeflow.org", "trainjobs", name) if stage == "gone" else self._json(200, resource)

    def _pods(self, query: dict[str, str]) -> None:
        found = re.match(r"jobset.sigs.k8s.io/jobset-name=([\w-]+),", query["labelSelector"])
        job = self.fake.jobs.get(found[1]) if found else None
        items = []
        if job is not None and self.fake.stage[job.name] != "suspended":
            running = self.fake.stage[job.name] != "pending"
            waiting = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable",
                       "message": "0/3 nodes are available: 3 Insufficient nvidia.com/gpu."}  # fmt: skip
            items = [
                {
                    "metadata": {
                        "name": f"{job.name}-node-0-{index}-abcde",
                        "creationTimestamp": "2026-01-01T00:00:00Z",
                        "labels": {"batch.kubernetes.io/job-completion-index": str(index)},
                    },
                    "status": {"phase": "Running"} if running else {"phase": "Pending", "conditions": [waiting]},
                }
                for index in range(
                    1 if "index=0" in query["labelSelector"] else job.body["spec"]["trainer"]["numNodes"]
                )
            ]
        self._json(200, {"kind": "PodList", "apiVersion": "v1", "items": items})

    def _log(self, pod: str, query: dict[str, str]) -> None:
        fake = self.fake
        with fake.lock:
            fake.since.append(query.get("sinceSeconds"))
            breaks = fake.log_breaks > 0
            fake.log_breaks -= breaks
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for number, line in enumerate(fake.log):
            self._chunk(f"2026-01-01T00:00:00.{number:09d}Z {line}\n".encode())
            if breaks:
                self.close_connection = True  # in the middle of the answer
                return
        while any(pod.startswith(name) and fake.stage[name] == "running" for name in list(fake.jobs)):
            time.sleep(0.01)  # as `follow` does: until the container ends
        self.wfile.write(b"0\r\n\r\n")

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.flush()

    def _fail(self, how: int | str) -> None:
        if how == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            self.rfile.close()
            self.connection.close()
        elif how == "cut":
            self._send(200, b'{"kind": "TrainJob", "metadata"', "application/json")
        else:
            self._status(int(how), "etcdserver: request timed out")

    def _absent(self, group: str, kind: str, name: str) -> None:
        self._status(404, f'{kind}.{group} "{name}" not found', {"name": name, "group": group, "kind": kind})

    def _status(self, code: int, message: str, details: dict[str, str] | None = None) -> None:
        status = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message, "code": code}
        self._json(code, {**status, "details": details or {}})

    def _json(self, code: int, body: dict[str, Any]) -> None:
        self._send(code, json.dumps(body).encode(), "application/json")

    def _send(self, code: int, body: bytes, kind: str) -> None:
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def _runtime(name: str) -> dict[str, Any]:
    container = {"name": "node", "image": "pytorch"}
    template = {
        "metadata": {"labels": {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}},
        "spec": {"template": {"spec": {"containers": [container]}}},
    }
    return {
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "ClusterTrainingRuntime",
        "metadata": {"name": name, "labels": {"trainer.kubeflow.org/framework": "torch"}},
        "spec": {
            "mlPolicy": {"numNodes": 1, "torch": {}},
            "template": {"spec": {"replicatedJobs": [{"name": "node", "template": template}]}},
        },
    }


def serve() -> Iterator[FakeKubernetes]:
    """Yield a server, for a fixture."""
    fake = FakeKubernetes()
    try:
        yield fake
    finally:
        fake.close()
