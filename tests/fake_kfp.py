"""A small API server of Kubeflow Pipelines (v2beta1), on loopback.

What it takes is read from the generated client ``kfp_server_api``: paths, methods, names of queries, and the fields and
types of bodies; anything else is refused with 404 or 400. What it answers is checked against the same models. A run
lives by a script: each time it is read it goes one step further, and stays at the last. So no test waits for a clock.
"""

from __future__ import annotations

import datetime
import email
import email.policy
import inspect
import json
import re
import ssl
import threading
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import kfp_server_api
import yaml

TOKEN = "the-user's-own-token"
NAMESPACE = "team"
#: Where the API is found: behind Kubeflow's gateway, and through the Kubernetes API server.
_PLACE = re.compile(r"/pipeline(?=/)|/api/v1/namespaces/kubeflow/services/ml-pipeline:http/proxy(?=/)")
_ENDED = {"SUCCEEDED", "FAILED", "CANCELED", "SKIPPED"}


@dataclass(frozen=True)
class Call:
    """One call of the API, as the generated client makes it."""

    name: str
    method: str
    path: re.Pattern[str]
    queries: frozenset[str]
    body: str | None
    file: str | None
    answer: str


def _calls() -> list[Call]:
    found = []
    for group in vars(kfp_server_api.api).values():
        if not inspect.isclass(group):
            continue
        for name, function in inspect.getmembers(group, inspect.isfunction):
            if not name.endswith("_with_http_info"):
                continue
            text = inspect.getsource(function)
            path, method = re.search(r"call_api\(\s*'([^']+)', '(\w+)'", text).groups()  # type: ignore[union-attr]
            pattern = re.sub(r"\\{[\w.\\]+\\}", r"([^/:]+)", re.escape(path))
            body = re.search(r"body_params = local_var_params\['(\w+)'\]", text)
            kind = re.search(rf":type {body[1]}: (\w+)", text) if body else None
            file = re.search(r"local_var_files\['(\w+)'\]", text)
            answer = re.search(r"response_type='(\w+)'", text)
            found.append(
                Call(
                    name.removesuffix("_with_http_info"), method, re.compile(pattern),
                    frozenset(re.findall(r"query_params.append\(\('(\w+)'", text)), kind[1] if kind else None,
                    file[1] if file else None, answer[1] if answer else "object",
                )
            )  # fmt: skip
    return found


CALLS = _calls()


def fault(value: Any, kind: str, place: str = "body") -> str | None:
    """Return why ``value`` is none of the generated models' ``kind``; None where it is one."""
    if inner := re.fullmatch(r"list\[(.*)\]", kind):
        if not isinstance(value, list):
            return f"{place} must be a list"
        return next((said for each in value if (said := fault(each, inner[1], f"{place}[]"))), None)
    if inner := re.fullmatch(r"dict\(str, (.*)\)", kind):
        if not isinstance(value, dict):
            return f"{place} must be a mapping"
        return next((said for key, each in value.items() if (said := fault(each, inner[1], f"{place}.{key}"))), None)
    if kind == "object":
        return None
    if kind in {"str", "int", "bool"}:  # numbers of 64 bits are strings
        types: Any = {"str": str, "int": int, "bool": bool}[kind]
        return None if isinstance(value, types) else f"{place} must be {kind}, not {value!r}"
    if kind == "datetime":
        try:
            datetime.datetime.fromisoformat(value)
        except (TypeError, ValueError):
            return f"{place} must be a time, not {value!r}"
        return None
    model = getattr(kfp_server_api.models, kind)
    if not model.openapi_types:
        return None if value in model.allowable_values else f"{place} must be one of {model.allowable_values}"
    if not isinstance(value, dict):
        return f"{place} must be a mapping"
    names = {key: model.openapi_types[attribute] for attribute, key in model.attribute_map.items()}
    unknown = set(value) - set(names)
    if unknown:
        return f"{place} has no field {', '.join(sorted(unknown))}"
    return next((said for key, each in value.items() if (said := fault(each, names[key], f"{place}.{key}"))), None)


class FakeKubeflow:
    """The server. Tests set what goes wrong, and read what was sent.

    Attributes:
        multi_user: whether it has many users, each with a namespace.
        lives: scripts of the runs to be made, in order; a step is the run's state and those of its tasks.
        faults: what the next call of a name gets instead of an answer: a status, ``html``, ``text``, ``empty``,
            ``list``, ``reset``, ``silent``, ``login`` (a redirection), or a pair of a status and a message.
        requests: every call by its name.
        sent: every body and query of calls that make something, by the call's name.
        paths: every path that was asked for.
    """

    def __init__(self) -> None:
        self.multi_user = False
        self.lives: list[list[tuple[str, dict[str, str]]]] = [
            [("RUNNING", {"preflight": "RUNNING"}), ("SUCCEEDED", {})]
        ]
        self.faults: list[tuple[str, Any]] = []
        self.requests: list[str] = []
        self.sent: list[tuple[str, dict[str, Any]]] = []
        self.paths: list[str] = []
        self.experiments: dict[str, dict[str, Any]] = {}
        self.pipelines: dict[str, dict[str, Any]] = {}
        self.versions: dict[str, list[dict[str, Any]]] = {}
        self.runs: dict[str, dict[str, Any]] = {}
        self.scripts: dict[str, list[tuple[str, dict[str, str]]]] = {}
        self.schedules: dict[str, dict[str, Any]] = {}
        self.clock = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
        self.lock = threading.RLock()
        self.closing = threading.Event()
        handler = type("Handler", (_Handler,), {"fake": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()
        self.address = f"http://127.0.0.1:{self._server.server_port}/pipeline"

    def speak_tls(self, certificate: Path, key: Path) -> str:
        """Take TLS from now on, and return the address."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        return self.address.replace("http://", "https://")

    def close(self) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def count(self, name: str) -> int:
        return self.requests.count(name)

    def bodies(self, name: str) -> list[dict[str, Any]]:
        return [body for each, body in self.sent if each == name]

    def now(self) -> str:
        self.clock += datetime.timedelta(seconds=10)
        return self.clock.isoformat().replace("+00:00", "Z")

    def serve(self, call: Call, found: tuple[str, ...], query: dict[str, str], body: Any) -> tuple[int, Any]:
        """Return status and answer of a call."""
        handle = getattr(self, call.name, None)
        if handle is None:
            return _refusal(501, f"the fake does not know {call.name}")
        if call.method in {"POST", "DELETE"}:
            self.sent.append((call.name, {"path": found, "query": query, "body": body}))
        try:
            answer = handle(*found, query=query, body=body)
        except KeyError as error:
            return _refusal(404, f"ResourceNotFoundError: {error} not found", 5)
        except ValueError as error:
            return _refusal(int(error.args[0]), error.args[1], error.args[2])
        said = fault(answer, call.answer, "answer")
        assert said is None, said
        return 200, answer

    # --- the calls, by the generated client's names -------------------------------------------------------

    def healthz_service_get_healthz(self, **_: Any) -> dict[str, Any]:
        return {"multi_user": self.multi_user, "pipeline_store": "database"}

    def experiment_service_list_experiments(self, query: dict[str, str], **_: Any) -> dict[str, Any]:
        self._place(query.get("namespace"))
        return _page("experiments", self._fit(self.experiments.values(), query), query)

    def experiment_service_create_experiment(self, body: dict[str, Any], **_: Any) -> dict[str, Any]:
        self._place(body.get("namespace"))
        made = {**body, "experiment_id": str(uuid.uuid4()), "created_at": self.now(), "storage_state": "AVAILABLE"}
        self.experiments[made["experiment_id"]] = made
        return made

    def pipeline_service_list_pipelines(self, query: dict[str, str], **_: Any) -> dict[str, Any]:
        return _page("pipelines", self._fit(self.pipelines.values(), {"namespace": "", **query}), query)

    def pipeline_service_create_pipeline(self, body: dict[str, Any], **_: Any) -> dict[str, Any]:
        if body.get("namespace") and not self.multi_user:
            raise ValueError(400, "In single-user mode, a pipeline has no namespace", 3)
        if any(each["display_name"] == body["display_name"] for each in self.pipelines.values()):
            raise ValueError(409, f"Already exist error: The name {body['display_name']} already exist", 6)
        made = {**body, "pipeline_id": str(uuid.uuid4()), "created_at": self.now()}
        self.pipelines[made["pipeline_id"]], self.versions[made["pipeline_id"]] = made, []
        return made

    def upload_pipeline_version(self, query: dict[str, str], body: dict[str, Any], **_: Any) -> dict[str, Any]:
        held = self.versions[query["pipelineid"]]
        if any(each["display_name"] == query["name"] for each in held):
            raise ValueError(409, f"Already exist error: The name {query['name']} already exist", 6)
        if not re.search(r"\.(ya?ml|zip|tar\.gz)$", body["filename"]):
            raise ValueError(400, "unexpected format of the pipeline file", 3)
        spec, *platform = yaml.safe_load_all(body["content"])
        made = {
            "pipeline_id": query["pipelineid"], "pipeline_version_id": str(uuid.uuid4()),
            "display_name": query["name"], "name": query["name"], "created_at": self.now(),
            "pipeline_spec": {"pipeline_spec": spec, "platform_spec": platform[0]} if platform else spec,
        }  # fmt: skip
        held.append(made)
        return made

    def pipeline_service_list_pipeline_versions(self, pipeline: str, query: dict[str, str], **_: Any) -> dict[str, Any]:
        return _page("pipeline_versions", self._fit(self.versions[pipeline], query), query)

    def run_service_create_run(self, body: dict[str, Any], **_: Any) -> dict[str, Any]:
        if "pipeline_spec" not in body:
            self._reference(body, version=True)
        made = {**body, "run_id": str(uuid.uuid4()), "created_at": self.now(), "state": "PENDING",
                "storage_state": "AVAILABLE"}  # fmt: skip
        self.runs[made["run_id"]] = made
        self.scripts[made["run_id"]] = list(self.lives.pop(0) if len(self.lives) > 1 else self.lives[0])
        return made

    def run_service_get_run(self, run: str, **_: Any) -> dict[str, Any]:
        held, script = self.runs[run], self.scripts[run]
        state, tasks = script.pop(0) if len(script) > 1 else script[0]
        self._step(held, state)
        details = held.setdefault("run_details", {"task_details": []})["task_details"]
        for name, now in tasks.items():
            told = next((each for each in details if each["display_name"] == name), None)
            if told is None:
                told = {"run_id": run, "task_id": str(uuid.uuid4()), "display_name": name, "start_time": self.now(),
                        "create_time": held["created_at"], "end_time": "1970-01-01T00:00:00Z"}  # fmt: skip
                details.append(told)
            told["state"] = now.partition(": ")[0]
            if now.partition(": ")[2]:
                told["error"] = {"code": 13, "message": now.partition(": ")[2]}
            if told["state"] in _ENDED:
                told["end_time"] = self.now()
        return held

    def run_service_list_runs(self, query: dict[str, str], **_: Any) -> dict[str, Any]:
        self._place(query.get("namespace"))
        return _page("runs", self._fit(self.runs.values(), {**query, "namespace": None}), query)

    def run_service_terminate_run(self, run: str, **_: Any) -> dict[str, Any]:
        if self.runs[run]["state"] in _ENDED:
            raise ValueError(400, f"Failed to terminate run {run}: it is in a final state", 9)
        self.scripts[run] = [("CANCELING", {}), ("CANCELED", {})]
        return {}

    def recurring_run_service_create_recurring_run(self, body: dict[str, Any], **_: Any) -> dict[str, Any]:
        self._reference(body, version=False)
        if not 1 <= int(body.get("max_concurrency", 0)) <= 10:
            raise ValueError(400, "Max concurrency of a recurring run must be at least 1 and at most 10", 3)
        cron = body["trigger"].get("cron_schedule", {}).get("cron")
        if cron is not None and not cron.startswith("@") and len(cron.split()) != 6:
            raise ValueError(400, "Schedule cron is not a supported format", 3)
        made = {**body, "recurring_run_id": str(uuid.uuid4()), "created_at": self.now(),
                "status": f"{body['mode']}D"}  # fmt: skip
        self.schedules[made["recurring_run_id"]] = made
        return made

    def recurring_run_service_list_recurring_runs(self, query: dict[str, str], **_: Any) -> dict[str, Any]:
        self._place(query.get("namespace"))
        return _page("recurringRuns", self._fit(self.schedules.values(), {**query, "namespace": None}), query)

    def recurring_run_service_disable_recurring_run(self, schedule: str, **_: Any) -> dict[str, Any]:
        self.schedules[schedule].update(mode="DISABLE", status="DISABLED")
        return {}

    def recurring_run_service_enable_recurring_run(self, schedule: str, **_: Any) -> dict[str, Any]:
        self.schedules[schedule].update(mode="ENABLE", status="ENABLED")
        return {}

    def recurring_run_service_delete_recurring_run(self, schedule: str, **_: Any) -> dict[str, Any]:
        del self.schedules[schedule]
        return {}

    # --- what they share -------------------------------------------------------------------------------------

    def _step(self, run: dict[str, Any], state: str) -> None:
        run["state"] = state.partition(": ")[0]
        if state.partition(": ")[2]:
            run["error"] = {"code": 13, "message": state.partition(": ")[2]}
        if run["state"] in _ENDED:
            run.setdefault("finished_at", self.now())

    def _place(self, namespace: str | None) -> None:
        if self.multi_user and not namespace:
            raise ValueError(400, "Invalid input error: namespace is empty in multi-user mode", 3)
        if namespace and not self.multi_user:
            raise ValueError(400, "Invalid input error: In single-user mode, namespace must be empty", 3)
        if namespace and namespace != NAMESPACE:
            raise ValueError(
                403,
                "Failed to authorize with API: PermissionDenied: User 'ada@example.com' is not authorized with reason: "
                f" (request: &ResourceAttributes{{Namespace:{namespace},Verb:list,Group:pipelines.kubeflow.org,"
                "Version:v1beta1,Resource:runs,Subresource:,Name:,})",
                7,
            )

    def _reference(self, body: dict[str, Any], version: bool) -> None:
        reference = body["pipeline_version_reference"]
        held = self.versions[reference["pipeline_id"]]
        if version and reference["pipeline_version_id"] not in [each["pipeline_version_id"] for each in held]:
            raise KeyError(reference["pipeline_version_id"])
        self.experiments[body["experiment_id"]]

    def _fit(self, held: Any, query: dict[str, str | None]) -> list[dict[str, Any]]:
        fit = list(held)
        if query.get("namespace") is not None:
            fit = [each for each in fit if each.get("namespace", "") == query["namespace"]]
        if query.get("filter"):
            asked = json.loads(query["filter"] or "")
            said = fault(asked, "V2beta1Filter", "filter")
            if said is not None:
                raise ValueError(400, said, 3)
            for each in asked["predicates"]:
                if each["operation"] != "EQUALS":
                    raise ValueError(400, "the fake knows EQUALS alone", 3)
                fit = [one for one in fit if one[each["key"]] == each["string_value"]]
        if query.get("sort_by"):
            field, _, order = (query["sort_by"] or "").partition(" ")
            fit.sort(key=lambda each: each[field], reverse=order == "desc")
        return fit


def _page(name: str, fit: list[dict[str, Any]], query: dict[str, str]) -> dict[str, Any]:
    """Return one page; as the real server's, an empty list is left out."""
    size, first = int(query.get("page_size") or 20), int(query.get("page_token") or 0)
    shown, rest = fit[first : first + size], len(fit) > first + size
    return {
        **({name: shown} if shown else {}),
        "total_size": len(fit),
        **({"next_page_token": str(first + size)} if rest else {}),
    }


def _refusal(status: int, message: str, code: int = 2) -> tuple[int, Any]:
    return status, {"error": message, "code": code, "message": message, "details": []}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # head and body in one packet
    fake: FakeKubeflow

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def do_DELETE(self) -> None:
        self._serve()

    def _serve(self) -> None:
        data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        url = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        path = _PLACE.sub("", url.path)
        fits = [(call, call.path.fullmatch(path)) for call in CALLS if call.method == self.command]
        call, found = next(((call, found) for call, found in fits if found), (None, None))
        self.fake.paths.append(url.path)
        if call is None or found is None or not _PLACE.match(url.path):
            return self._send(404, b"404 page not found\n", "text/plain")
        with self.fake.lock:
            self.fake.requests.append(call.name)
            wrong = next((each for each in self.fake.faults if each[0] == call.name), None)
            if wrong is not None:
                self.fake.faults.remove(wrong)
        if wrong is not None:
            return self._fail(wrong[1])
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            token = str(self.headers.get("Authorization")).removeprefix("Bearer ")
            return self._json(*_refusal(401, f"Unauthenticated: the token {token} is not valid any more", 16))
        if set(query) - call.queries:
            return self._json(*_refusal(400, f"no query {set(query) - call.queries}", 3))
        body: Any = None
        if call.file is not None:
            body = self._file(data, call.file)
        elif data:
            body = json.loads(data)
            said = fault(body, call.body or "object") if call.body else "this call has no body"
            if said is not None:
                return self._json(*_refusal(400, said, 3))
        with self.fake.lock:
            return self._json(*self.fake.serve(call, found.groups(), query, body))

    def _file(self, data: bytes, name: str) -> dict[str, Any]:
        head = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
        message = email.message_from_bytes(head + data, policy=email.policy.HTTP)
        (part,) = message.iter_parts()  # type: ignore[attr-defined]
        assert part.get_param("name", header="Content-Disposition") == name
        return {"filename": part.get_filename(), "content": part.get_payload(decode=True)}

    def _fail(self, how: Any) -> None:
        if how == "reset":
            self.close_connection = True
            self.connection.close()
        elif how == "silent":
            self.fake.closing.wait(60)
            self.close_connection = True
        elif how == "login":
            self.send_response(302)
            self.send_header("Location", "/dex/auth?state=hidden-state")
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif isinstance(how, int):
            self._json(*_refusal(how, f"{how} by the test"))
        elif isinstance(how, tuple):
            self._json(*_refusal(how[0], how[1]))
        else:
            text = {"html": b"<html>login</html>", "text": b"ok", "empty": b"{}", "list": b"[]", "binary": b"\xff\xfe"}
            self._send(200, text[how], "text/html")

    def _json(self, status: int, body: Any) -> None:
        self._send(status, json.dumps(body).encode(), "application/json")

    def _send(self, status: int, data: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def serve() -> Iterator[FakeKubeflow]:
    """Yield a server, for a fixture."""
    fake = FakeKubeflow()
    try:
        yield fake
    finally:
        fake.close()
