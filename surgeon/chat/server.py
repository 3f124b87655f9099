"""The report's page on loopback, with a box to type into. The standard library's server: one page and one request.

Nobody else can reach it: it listens on 127.0.0.1 only, answers only requests that name it as the host (so that no other
site can be that name), and takes questions only as JSON from its own page (which other sites' pages cannot send). Who
is slow is left, and no more than a few are answered at a time.
"""

from __future__ import annotations

import io
import json
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from surgeon.checkpoint.plain_json import NotPlain, parse_json
from surgeon.errors import InputError, SurgeonError
from surgeon.model.results import Continuation

LOOPBACK = "127.0.0.1"
LONGEST = 1 << 16  # bytes of a question
MOST = 16  # visitors at a time; a browser has six connections
PATIENCE = 10.0  # seconds in which a visitor must have asked, and again in which it must have taken the answer

Answer = Callable[[str], Mapping[str, Continuation]]


def page_with_box(report: str) -> str:
    """Return a report's page with the box, and leave to ask the server that it came from."""
    box = (Path(__file__).parent / "box.html").read_text(encoding="utf-8")
    policy, place = "default-src 'none';", "<main>"
    if policy not in report or place not in report:
        raise InputError("the report's page was not written by this surgeon; run `surgeon apply` again")
    return report.replace(policy, f"{policy} connect-src 'self';", 1).replace(place, place + box, 1)


class Server(ThreadingHTTPServer):
    """Listens on loopback; holds what every request needs: the page, who answers, and the lock around that."""

    daemon_threads = True
    request_queue_size = 64  # visitors that the system keeps waiting, so that those too many are told so, too

    def __init__(self, page: str, answer: Answer, port: int) -> None:
        self.content, self.answer = page.encode("utf-8"), answer
        self.one_at_a_time = threading.Lock()  # the variants are made in the one model
        self._places = threading.BoundedSemaphore(MOST)
        super().__init__((LOOPBACK, port), Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer in a thread of its own, unless too many are answered already."""
        if self._places.acquire(blocking=False):
            super().process_request(request, client_address)
            return
        with suppress(OSError):
            request.setblocking(False)  # a few bytes always fit
            request.send(b"HTTP/1.0 503 Service Unavailable\r\nRetry-After: 10\r\n\r\n")
        self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer, and make room for the next."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of visitors that leave, or that are too slow."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


def make_server(page: str, answer: Answer, port: int = 0) -> Server:
    """Return a server on loopback, not yet serving; port 0 takes a free one (`server.server_port`).

    Raises:
        InputError: the port is taken.
    """
    try:
        return Server(page, answer, port)
    except OSError as error:
        raise InputError(f"--port {port}: {error.strerror}; choose another, or 0 for any that is free") from None


class _Patient(io.RawIOBase):
    """What comes over a connection within so many seconds from now, all in all."""

    def __init__(self, connection: socket.socket, seconds: float) -> None:
        self._connection, self._until = connection, time.monotonic() + seconds

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        left = self._until - time.monotonic()
        if left <= 0:
            raise TimeoutError("the visitor is too slow")
        self._connection.settimeout(left)
        return self._connection.recv_into(buffer)


class Handler(BaseHTTPRequestHandler):
    """Answers one request: for the page, or for what the models say to a prompt."""

    server: Server
    server_version, sys_version = "surgeon", ""

    def setup(self) -> None:
        """Give the visitor so long to ask, however slowly the bytes come."""
        super().setup()
        self.rfile = io.BufferedReader(_Patient(self.connection, PATIENCE))

    def do_GET(self) -> None:
        """Send the page."""
        if self._is_meant("/"):
            self._send(HTTPStatus.OK, "text/html; charset=utf-8", self.server.content)

    def do_POST(self) -> None:
        """Send what the models say."""
        question = self._question() if self._is_meant("/ask") else None
        if question is None:
            return
        try:
            with self.server.one_at_a_time:
                answers = self.server.answer(question)
        except SurgeonError as error:
            self._send_json(HTTPStatus.BAD_REQUEST, {"error": str(error)})
        else:
            keys = ("continuation", "tokens", "stopped")
            shown = {name: {key: getattr(item, key) for key in keys} for name, item in answers.items()}
            self._send_json(HTTPStatus.OK, {"answers": shown})

    def _is_meant(self, path: str) -> bool:
        """Refuse what names another host, comes from another site's page, or asks for another path."""
        names = {f"{name}:{self.server.server_port}" for name in (LOOPBACK, "localhost")}
        origin = self.headers.get("Origin")
        if self.headers.get("Host") not in names or (
            origin is not None and origin.removeprefix("http://") not in names
        ):
            self._refuse(HTTPStatus.FORBIDDEN)
        elif self.path != path:
            self._refuse(HTTPStatus.NOT_FOUND)
        else:
            return True
        return False

    def _question(self) -> str | None:
        """Read what is asked; a page of another site can send no JSON without asking first, and gets no leave."""
        size = self.headers.get("Content-Length", "")
        if self.headers.get_content_type() != "application/json":
            self._refuse(HTTPStatus.UNSUPPORTED_MEDIA_TYPE)
        elif not (size.isascii() and size.isdigit() and len(size) < 10) or int(size) > LONGEST:
            self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        else:
            try:
                data = parse_json(self.rfile.read(int(size)))
            except NotPlain:
                data = None
            if isinstance(data, dict) and isinstance(data.get("prompt"), str):
                return str(data["prompt"])
            self._refuse(HTTPStatus.BAD_REQUEST)
        return None

    def _refuse(self, status: HTTPStatus) -> None:
        self.close_connection = True
        self._send_json(status, {"error": status.phrase})

    def _send_json(self, status: HTTPStatus, data: Any) -> None:
        self._send(status, "application/json", json.dumps(data).encode())

    def _send(self, status: HTTPStatus, kind: str, body: bytes) -> None:
        self.connection.settimeout(PATIENCE)  # for all of it
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: the page shows what was asked."""
