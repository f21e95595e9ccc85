"""A real MLflow server that tests stop and start again, and a door in front of it that loses or replaces answers."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Server:
    """A real MLflow server that can be stopped, and started again on the same database and port."""

    def __init__(self, folder: Path, start: Callable[[Path, int], subprocess.Popen[bytes]]) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self._folder, self._start = folder, start
        self.process = start(folder, self.port)

    def stop(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def start(self) -> None:
        self.process = self._start(self._folder, self.port)


class Door:
    """Stands in front of the server: passes requests on, or does not, or loses or replaces their answers."""

    def __init__(self, behind: int) -> None:
        self.lose: dict[str, int] = {}  # a path's end → how many answers to it are lost
        self.answer: int | None = None  # given instead of asking the server
        self.about = ""  # to requests whose path holds this
        door = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _pass(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                self.close_connection = True
                if door.answer is not None and door.about in self.path:
                    self.send_response(door.answer)
                    self.send_header("Content-Length", "0")
                    self.send_header("Connection", "close")
                    self.end_headers()
                    return
                server = http.client.HTTPConnection("127.0.0.1", behind, timeout=30)
                server.request(self.command, self.path, body, dict(self.headers))
                answer = server.getresponse()
                data = answer.read()
                server.close()
                end = self.path.partition("?")[0].rpartition("/")[2]
                if door.lose.get(end, 0):
                    door.lose[end] -= 1
                    return  # the connection closes, and the client knows nothing
                self.send_response(answer.status)
                for name, value in answer.getheaders():
                    if name.lower() not in {"transfer-encoding", "connection", "content-length", "date", "server"}:
                        self.send_header(name, value)
                self.send_header("Content-Length", str(len(data)))
                self.send_header("Connection", "close")
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _pass

            def log_message(self, *arguments: object) -> None:
                pass

        self._handler, self._port = Handler, 0
        self._http: ThreadingHTTPServer | None = None
        self.open()

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def open(self) -> None:
        self._http = ThreadingHTTPServer(("127.0.0.1", self._port), self._handler)
        self._port = self._http.server_address[1]
        threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True).start()

    def shut(self) -> None:
        """Refuse connections."""
        if self._http is not None:
            self._http.shutdown()
            self._http.server_close()
            self._http = None
