"""`surgeon chat --serve`: the report's page with a box, on loopback, for this machine's browser and nobody else."""

from __future__ import annotations

import http.client
import json
import re
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from surgeon.chat import server
from surgeon.chat.server import LONGEST, MOST, make_server, page_with_box
from surgeon.chat.speakers import open_output
from surgeon.cli.talking import _serve
from surgeon.ending import _interrupt
from surgeon.errors import InputError
from surgeon.model.results import Continuation

JSON = {"Content-Type": "application/json"}
Ask = Callable[..., tuple[int, str, dict[str, str]]]


@pytest.fixture
def served() -> Iterator[tuple[Any, list[str]]]:
    """A server whose speakers echo, and what they were asked."""
    asked: list[str] = []

    def answer(prompt: str) -> dict[str, Continuation]:
        asked.append(prompt)
        if prompt == "long":
            raise InputError("too long")
        return {"base": Continuation(prompt, prompt[::-1], 3, "length")}

    one = make_server("<p>page", answer)
    threading.Thread(target=one.serve_forever, daemon=True).start()
    yield one, asked
    one.shutdown()
    one.server_close()


@pytest.fixture
def request_it(served: tuple[Any, list[str]]) -> Ask:
    def send(method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, str, dict[str, str]]:
        connection = http.client.HTTPConnection("127.0.0.1", served[0].server_port, timeout=10)
        connection.request(method, path, body, {key.replace("_", "-"): value for key, value in headers.items()})
        reply = connection.getresponse()
        return reply.status, reply.read().decode(), dict(reply.getheaders())

    return send


def test_it_listens_on_loopback_only(served: tuple[Any, list[str]]) -> None:
    assert served[0].server_address[0] == "127.0.0.1"


def test_the_page_is_shown_and_a_question_answered(request_it: Ask, served: tuple[Any, list[str]]) -> None:
    assert request_it("GET", "/")[:2] == (200, "<p>page")
    status, body, _ = request_it("POST", "/ask", b'{"prompt": "abc"}', Content_Type="application/json")
    assert status == 200
    assert json.loads(body) == {"answers": {"base": {"continuation": "cba", "tokens": 3, "stopped": "length"}}}
    status, body, _ = request_it("POST", "/ask", b'{"prompt": "long"}', Content_Type="application/json")
    assert (status, json.loads(body)) == (400, {"error": "too long"})


def test_nobody_else_is_answered(request_it: Ask, served: tuple[Any, list[str]]) -> None:
    """Neither a site that took loopback's address as its own, nor another site's form, nor other paths."""
    question = b'{"prompt": "abc"}'
    refused = [
        request_it("GET", "/", Host="evil.example"),
        request_it("POST", "/ask", question, Host="evil.example", Content_Type="application/json"),
        request_it("POST", "/ask", question, Origin="http://evil.example", Content_Type="application/json"),
        request_it("POST", "/ask", question, Content_Type="text/plain"),
        request_it("POST", "/ask", b"prompt=abc", Content_Type="application/x-www-form-urlencoded"),
        request_it("POST", "/ask", b"{", Content_Type="application/json"),
        request_it("POST", "/ask", b'["abc"]', Content_Type="application/json"),
        request_it("POST", "/ask", b"", Content_Type="application/json", Content_Length=str(LONGEST + 1)),
        request_it("POST", "/", question, Content_Type="application/json"),
        request_it("GET", "/ask"),
        request_it("GET", "/../report.json"),
    ]
    assert [status for status, _, _ in refused] == [403, 403, 403, 415, 415, 400, 400, 413, 404, 404, 404]
    assert served[1] == []
    assert all("Access-Control-Allow-Origin" not in headers for _, _, headers in refused)


def opened(port: int, said: bytes = b"") -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), timeout=10)
    connection.sendall(said)
    return connection


@pytest.mark.parametrize(
    "said", [b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: x", b"POST /ask HTTP/1.1\r\nContent-Length: 99\r\n\r\n{"]
)
def test_a_visitor_that_drips_is_left(
    said: bytes, served: tuple[Any, list[str]], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(server, "PATIENCE", 0.5)
    connection, began = opened(served[0].server_port, said), time.monotonic()
    left = False
    while not left and time.monotonic() - began < 5:  # a byte now and then, so that no single wait is long
        try:
            connection.sendall(b"x")
            connection.settimeout(0.1)
            left = connection.recv(1000) == b""
        except TimeoutError:
            pass
        except ConnectionError:
            left = True
    connection.close()
    assert left
    assert capfd.readouterr().err == ""


def test_a_visitor_that_takes_nothing_is_left(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(server, "PATIENCE", 0.3)
    monkeypatch.setattr(server, "MOST", 1)
    one = make_server("x" * 30_000_000, lambda prompt: {})  # more than the system keeps of it
    threading.Thread(target=one.serve_forever, daemon=True).start()
    waiting = opened(one.server_port, f"GET / HTTP/1.1\r\nHost: 127.0.0.1:{one.server_port}\r\n\r\n".encode())
    for _ in range(100):
        time.sleep(0.05)
        connection = http.client.HTTPConnection("127.0.0.1", one.server_port, timeout=10)
        connection.request("HEAD", "/", headers={"Connection": "close"})
        if connection.getresponse().status != 503:
            break
    else:
        pytest.fail("its place was never free again")
    waiting.close()
    one.shutdown()
    one.server_close()
    assert capfd.readouterr().err == ""


def test_no_more_than_a_few_are_answered_at_a_time(
    request_it: Ask, served: tuple[Any, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "PATIENCE", 2.0)
    before = threading.active_count()
    idle = [opened(served[0].server_port) for _ in range(MOST + 4)]
    time.sleep(0.2)
    there, refused = threading.active_count() - before, request_it("GET", "/")[0]
    assert (there <= MOST, refused) == (True, 503)
    time.sleep(2.2)
    for connection in idle:
        connection.close()
    assert request_it("GET", "/")[0] == 200  # who was slow has made room


def test_who_leaves_leaves_no_traceback(served: tuple[Any, list[str]], capfd: pytest.CaptureFixture[str]) -> None:
    port = served[0].server_port
    head = (
        f"POST /ask HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\nContent-Length: 15\r\n\r\n"
    )
    for said in (b"", b"GET", head.encode(), head.encode() + b'{"prompt": "a"}'):
        connection = opened(port, said)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # reset, and no goodbye
        connection.close()
    time.sleep(0.5)
    assert capfd.readouterr().err == ""


def test_a_port_that_is_taken_is_our_error(served: tuple[Any, list[str]]) -> None:
    with pytest.raises(InputError, match="choose another"):
        make_server("", lambda prompt: {}, served[0].server_port)


def test_a_page_of_another_kind_is_refused() -> None:
    with pytest.raises(InputError, match="was not written by this surgeon"):
        page_with_box("<html></html>")


@pytest.mark.slow
def test_in_a_browser_one_types_and_reads(small_run: Path, browser: Any) -> None:
    speakers = open_output(small_run, ["cut"], new_tokens=6)
    served = make_server(page_with_box((small_run / "report.html").read_text(encoding="utf-8")), speakers.answer)
    threading.Thread(target=served.serve_forever, daemon=True).start()
    complaints: list[str] = []
    for width in (1280, 390):
        page = browser.new_page(viewport={"width": width, "height": 900})
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(f"http://127.0.0.1:{served.server_port}/")
        page.get_by_label("Prompt").fill("Alle <b>Menschen")
        page.get_by_label("Prompt").press("Enter")
        page.wait_for_selector("#chat dl")
        expected = speakers.answer("Alle <b>Menschen")
        cards = page.locator("#chat .answers > div")
        assert cards.count() == 2
        assert [cards.nth(i).locator("dt").inner_text() for i in range(2)] == ["base", "cut"]
        for i, name in enumerate(expected):
            assert cards.nth(i).locator("dd").text_content().startswith(expected[name].continuation)
        assert page.locator("#chat .asked").text_content() == "Alle <b>Menschen"
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        page.get_by_label("Prompt").fill("x" * 80)  # with six more tokens than the model has positions
        page.get_by_role("button", name="Ask").click()
        page.get_by_role("status").filter(has_text="positions").wait_for()
        page.close()
    served.shutdown()
    served.server_close()
    assert [text for text in complaints if "400" not in text] == []


def test_ctrl_c_ends_it_quietly(small_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It says its address, answers there, and ends with nothing to complain of."""
    seen: list[str] = []

    def visit() -> None:
        address = re.match(r"http://127\.0\.0\.1:(\d+)/ \(base, cut\)", said())
        connection = http.client.HTTPConnection("127.0.0.1", int(address[1] if address else 0), timeout=30)
        connection.request("GET", "/")
        seen.append(connection.getresponse().read().decode())
        signal.raise_signal(signal.SIGINT)

    def said() -> str:
        for _ in range(300):
            text = capsys.readouterr().out
            if text:
                return text
            time.sleep(0.1)
        return ""

    visitor = threading.Thread(target=visit)
    before = signal.signal(signal.SIGINT, _interrupt)
    try:
        visitor.start()
        _serve(open_output(small_run, ["cut"]), small_run / "report.html", 0)
    finally:
        visitor.join()
        signal.signal(signal.SIGINT, before)
    assert "Ask them yourself" in seen[0]
