"""`surgeon chat --serve`: the report's page with a box, on loopback, for this machine's browser and nobody else."""

from __future__ import annotations

import http.client
import json
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from surgeon.chat.server import LONGEST, make_server, page_with_box
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

    server = make_server("<p>page", answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server, asked
    server.shutdown()
    server.server_close()


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


def test_a_port_that_is_taken_is_our_error(served: tuple[Any, list[str]]) -> None:
    with pytest.raises(InputError, match="choose another"):
        make_server("", lambda prompt: {}, served[0].server_port)


def test_a_page_of_another_kind_is_refused() -> None:
    with pytest.raises(InputError, match="was not written by this surgeon"):
        page_with_box("<html></html>")


@pytest.mark.slow
def test_in_a_browser_one_types_and_reads(small_run: Path, browser: Any) -> None:
    speakers = open_output(small_run, ["cut"], new_tokens=6)
    server = make_server(page_with_box((small_run / "report.html").read_text(encoding="utf-8")), speakers.answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    complaints: list[str] = []
    for width in (1280, 390):
        page = browser.new_page(viewport={"width": width, "height": 900})
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(f"http://127.0.0.1:{server.server_port}/")
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
    server.shutdown()
    server.server_close()
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
