"""What the Hub may answer: names that stay inside its cache, JSON that is JSON, and bodies that come to an end.

The Hub's client library believes what it is told: it names files in its cache after the `ETag` that it gets, waits for
a body as long as a byte comes now and then, and keeps what never ends. So each answer is looked at before it sees it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from typing import Any

from surgeon.checkpoint.plain_json import NotPlain, parse_json
from surgeon.errors import EnvironmentFailure

PATIENCE = 30.0  # seconds of waiting in which a body must bring a kilobyte a second
_SLOWEST = 1024  # bytes per second: below that a connection hangs, or somebody holds it up
_TIMEOUTS = {"connect": 30.0, "read": 60.0, "write": 120.0, "pool": 60.0}  # where the library sets none; seconds
_COMMITTING = 600.0  # seconds that the Hub may think about what it was sent
_LONGEST_API = 1 << 26  # bytes of JSON: the list of some 300,000 files
_LONGEST_REFUSAL = 1 << 20  # bytes: a sentence or a page, of which 300 characters are shown
_LONGEST_UNSAID = 1 << 30  # bytes of a file whose length is not said beforehand, as with small ones
# Of these the library makes names of files and folders in its cache.
_NAMES = ("ETag", "X-Linked-Etag", "X-Repo-Commit")


def guard_client() -> None:
    """Have all that the Hub's client library is answered from now on looked at first; done once for a process."""
    from huggingface_hub.utils import _http

    make = getattr(_http, "_GLOBAL_CLIENT_FACTORY", None)
    if make is None or isinstance(make, _Guarded):
        return
    _http.set_client_factory(_Guarded(make))


class _Guarded:
    """Makes the client as it was made before, and looks at what it sends and gets."""

    def __init__(self, make: Any) -> None:
        self._make = make

    def __call__(self) -> Any:
        client = self._make()
        # Compressed bytes may unpack to any multiple of themselves, so none are asked for.
        client.headers["Accept-Encoding"] = "identity"
        hooks = client.event_hooks
        client.event_hooks = {
            "request": [*hooks["request"], _set_timeouts],
            "response": [*hooks["response"], _look_at],
        }
        return client


def _set_timeouts(request: Any) -> None:
    given = request.extensions.get("timeout") or {}
    wait = _TIMEOUTS if request.method in ("GET", "HEAD") else {**_TIMEOUTS, "read": _COMMITTING}
    request.extensions["timeout"] = {key: given.get(key) or seconds for key, seconds in wait.items()}


def _look_at(response: Any) -> None:
    request, headers = response.request, response.headers
    where = f"{request.url.host}{request.url.path}"
    if request.method == "HEAD":
        for name in _NAMES:
            _check_name(where, name, headers.get(name))
    if headers.get("Content-Encoding", "identity").lower() not in ("identity", "") and request.method != "HEAD":
        raise EnvironmentFailure(f"{where}: the answer is compressed, although asked not to be; is a proxy between?")
    api = request.url.path.startswith("/api/")
    longest = None
    if response.status_code >= 300:
        longest = _LONGEST_REFUSAL
    elif api:
        longest = _LONGEST_API
    elif "Content-Length" not in headers:
        longest = _LONGEST_UNSAID
    response.stream = _bounded(response.stream, where, longest)
    if api and response.status_code < 300 and "json" in headers.get("Content-Type", ""):
        response.read()
        _check_json(where, response.content)


def _check_name(where: str, header: str, value: str | None) -> None:
    """Refuse what would lead out of the folder that the library puts it in."""
    if value is None:
        return
    name = value.removeprefix("W/").strip('"')
    if set("/\\\0") & set(name) or name in ("", ".", "..") or len(name) > 200:
        raise EnvironmentFailure(
            f"{where}: the Hub calls this {value[:100]!r} ({header}), which cannot name a file; nothing was kept of it"
        )


def _check_json(where: str, content: bytes) -> None:
    try:
        parse_json(content, _LONGEST_API, unique=False)
    except NotPlain as error:
        raise EnvironmentFailure(f"{where}: the Hub's answer cannot be read: {error}; try again") from None


def _bounded(stream: Any, where: str, longest: int | None) -> Any:
    """Return a stream that ends with an error where the other would not end."""
    http = sys.modules[type(stream).__module__.partition(".")[0]]  # the library's generation of the HTTP library

    class Bounded(http.SyncByteStream):  # type: ignore[misc, name-defined]
        def __iter__(self) -> Iterator[bytes]:
            done = recent = 0
            waited = 0.0
            pieces = iter(stream)
            while True:
                began = time.monotonic()
                piece = next(pieces, None)
                waited += time.monotonic() - began  # not what is done with the pieces meanwhile
                if piece is None:
                    return
                done, recent = done + len(piece), recent + len(piece)
                if longest is not None and done > longest:
                    raise EnvironmentFailure(f"{where}: the Hub's answer is longer than {longest:,} bytes; try again")
                if waited >= PATIENCE:
                    if recent < _SLOWEST * waited:
                        raise EnvironmentFailure(
                            f"{where}: the answer comes at {recent / waited:,.0f} bytes a second, which is given up; "
                            "what was transferred is kept, try again"
                        )
                    recent, waited = 0, 0.0
                yield piece

        def close(self) -> None:
            stream.close()

    return Bounded()
