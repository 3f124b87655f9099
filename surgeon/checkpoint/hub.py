"""The Hub's client library: what it is answered is looked at first, what it raises becomes an error of ours.

It believes what it is told: it names files in its cache after the `ETag` that it gets, waits for a body as long as a
byte comes now and then, and keeps what never ends. Of files it compares sizes only. So each answer is looked at before
it sees it. The cache calls a file after the hash that the Hub named for it (SHA-256, or git's own for small ones), so
each that is fetched is held against its name; another one is taken out again, or it would be believed from then on.

    401, 403, 404, 409, 412, other 4xx   InputError: log in, ask for the right, mend the name  (exit code 2)
    429, 5xx, dropped or no connection   EnvironmentFailure: the same command resumes          (exit code 3)

Messages are made of our own words and of what the server said, with anything that looks like a token removed;
the library's exceptions are not chained, since they print requests.
"""

from __future__ import annotations

import hashlib
import logging
import re
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from traceback import walk_tb
from typing import Any

from surgeon.checkpoint.hashing import file_hash
from surgeon.checkpoint.plain_json import NotPlain, parse_json
from surgeon.errors import EnvironmentFailure, InputError, SurgeonError

PATIENCE = 30.0  # seconds of waiting in which a body must bring a kilobyte a second
_SLOWEST = 1024  # bytes per second: below that a connection hangs, or somebody holds it up
_TIMEOUTS = {"connect": 30.0, "read": 60.0, "write": 120.0, "pool": 60.0}  # where the library sets none; seconds
_COMMITTING = 600.0  # seconds that the Hub may think about what it was sent
_LONGEST_API = 1 << 26  # bytes of JSON: the list of some 300,000 files
_LONGEST_REFUSAL = 1 << 20  # bytes: a sentence or a page, of which 300 characters are shown
_LONGEST_UNSAID = 1 << 30  # bytes of a file whose length is not said beforehand, as with small ones
# Of these the library makes names of files and folders in its cache.
_NAMES = ("ETag", "X-Linked-Etag", "X-Repo-Commit")
_TOKEN = re.compile(r"\b(?:hf|api_org)_[A-Za-z0-9]{4,}|(?i:bearer)\s+\S+|[?&](?:X-Amz-[\w-]+|Signature|token)=[^&\s]+")
_LONGEST = 300  # characters of a server's message that are shown
_RESUMES = "what was transferred is kept; the same command resumes"
_ADVICE = {
    400: "the Hub refused the request",
    401: "the Hub does not know who you are: run `hf auth login`, or set HF_TOKEN",
    402: "the Hub asks for a payment or a larger plan",
    403: "your token does not have this right: make one that has it (to push: write access) at "
    "https://huggingface.co/settings/tokens and run `hf auth login`",
    404: "nothing there under this name, or it is private and your token may not see it: check the name, "
    "and run `hf auth login`",
    409: "it conflicts with what is there already: look at the repository and try again",
    412: "somebody else has changed it meanwhile: look at the repository and try again",
    413: "too much for one request",
    429: f"too many requests: wait a few minutes; {_RESUMES}",
}
_SHA256 = re.compile(r"[0-9a-f]{64}")
_GIT = re.compile(r"[0-9a-f]{40}")


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
            if name in headers:
                _check_name(where, name, headers[name])
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
        try:
            parse_json(response.read(), _LONGEST_API, unique=False)
        except NotPlain as error:
            raise EnvironmentFailure(f"{where}: the Hub's answer cannot be read: {error}; try again") from None


def _check_name(where: str, header: str, value: str) -> None:
    """Refuse what would lead out of the folder that the library puts it in."""
    name = value.removeprefix("W/").strip('"')
    if set("/\\\0") & set(name) or name in ("", ".", "..") or len(name) > 200:
        raise EnvironmentFailure(
            f"{where}: the Hub calls this {value[:100]!r} ({header}), which cannot name a file; nothing was kept of it"
        )


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


@contextmanager
def hub_errors(what: str) -> Iterator[None]:
    """Run a block that talks to the Hub; `what` says whom about, such as `hf://org/name`, and begins the message.

    Meanwhile the Hub's client keeps its warnings to itself, and draws progress bars on a terminal only.

    Raises:
        InputError: the Hub refused something that the user can mend.
        EnvironmentFailure: the network or the Hub gave out.
    """
    guard_client()
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.ERROR)  # its warnings show signed addresses, and whatever the server sent
    try:
        with _bars_on_terminals_only():
            yield
    except SurgeonError:
        raise
    except Exception as error:
        mended = explain(error, what) or _of_answer(error, what)
        if mended is None:
            raise
        raise mended from None
    finally:
        logger.setLevel(level)


@contextmanager
def _bars_on_terminals_only() -> Iterator[None]:
    from huggingface_hub import utils

    if sys.stderr.isatty() or utils.are_progress_bars_disabled():
        yield
        return
    utils.disable_progress_bars()
    try:
        yield
    finally:
        utils.enable_progress_bars()


def explain(error: BaseException, what: str) -> SurgeonError | None:
    """Return our error for one of the client library's, or None if it is not one of those."""
    from huggingface_hub import errors

    chain = _chain(error)
    # Training images may have a client of before 1.0, to which a file that is not there is an answer of the Hub's.
    absent = errors.LocalEntryNotFoundError
    refused = (errors.HFValidationError, getattr(errors, "FileDuplicationError", errors.HFValidationError))
    for one in chain:
        if isinstance(one, errors.OfflineModeIsEnabled):
            return EnvironmentFailure(f"{what}: not reached, as HF_HUB_OFFLINE is set; unset it and run it again")
        if isinstance(one, errors.GatedRepoError):
            return InputError(f"{what}: the repository is gated; accept its terms on the Hub and run `hf auth login`")
        if isinstance(one, errors.RevisionNotFoundError):
            return InputError(f"{what}: the repository has no such revision; name a branch, tag or commit of it")
        if isinstance(one, errors.HfHubHTTPError) and not isinstance(one, absent):
            return _of_status(one, what)
        if is_transport(one):
            return EnvironmentFailure(
                f"{what}: the connection to the Hub broke ({scrub(str(one)) or type(one).__name__}); {_RESUMES}"
            )
    for one in chain:
        if isinstance(one, refused):
            return InputError(f"{what}: {scrub(str(one))}")
        if isinstance(one, absent | errors.FileMetadataError | ConnectionError):
            return EnvironmentFailure(f"{what}: the Hub cannot be reached; {_RESUMES}")
        if isinstance(one, OSError) and "Consistency check failed" in str(one):
            return EnvironmentFailure(f"{what}: a download broke off; {_RESUMES}")
        if isinstance(one, ValueError) and ("metadata in README.md" in str(one) or "LFS batch API" in str(one)):
            return InputError(f"{what}: {scrub(str(one))}")
    return None


def _of_answer(error: Exception, what: str) -> SurgeonError | None:
    """Return our error for one that the library raised over an answer that it does not understand, else None.

    It looks at no type before it uses it. An error that arose anywhere else is a defect, and not the Hub's.
    """
    if not isinstance(error, LookupError | TypeError | AttributeError | ValueError | AssertionError):
        return None
    rooms = [frame.f_globals.get("__name__", "") for frame, _ in walk_tb(error.__traceback__)]
    ours = max((i for i, room in enumerate(rooms) if room.startswith("surgeon.")), default=-1)
    if not any(room.startswith("huggingface_hub.") for room in rooms[ours + 1 :]):
        return None
    said = f"{type(error).__name__}: {scrub(str(error))}"
    return EnvironmentFailure(f"{what}: the Hub's answer is not one that can be understood ({said}); try again")


def scrub(text: str) -> str:
    """Return a text on one line, not too long, without the token in use or anything that looks like one."""
    from huggingface_hub import get_token

    token = get_token()
    if token:
        text = text.replace(token, "(token)")
    text = " ".join(_TOKEN.sub("(token)", text).split())
    return text if len(text) <= _LONGEST else text[:_LONGEST] + " ..."


def _of_status(error: BaseException, what: str) -> SurgeonError:
    from huggingface_hub import errors

    response = getattr(error, "response", None)
    status = getattr(response, "status_code", 0)
    advice = _ADVICE.get(404 if isinstance(error, errors.RepositoryNotFoundError) else status)
    if advice is None:
        advice = f"the Hub is in trouble; {_RESUMES}" if status >= 500 or not status else "the Hub refused the request"
    said = scrub(getattr(error, "server_message", None) or "")
    message = f"{what}: {advice} (HTTP {status}{': ' + said if said else ''})"
    kind = EnvironmentFailure if status >= 500 or status in (0, 408, 429) else InputError
    return kind(message)


def _chain(error: BaseException) -> list[BaseException]:
    """Return an exception and what caused it; the library wraps a failed upload in a RuntimeError."""
    result: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in result:
        result.append(current)
        current = current.__cause__ or current.__context__
    return result


def is_transport(error: BaseException) -> bool:
    """True for an exception of the HTTP library below, whichever generation of it the client uses."""
    return any(
        cls.__module__.partition(".")[0] in ("httpx", "httpx2", "httpcore", "requests") for cls in type(error).__mro__
    )


def fetch_file(repository: str, name: str, revision: str | None, kind: str = "model") -> Path:
    """Return the path of one file in the Hub's cache, fetched if it is not there.

    Raises:
        EnvironmentFailure: it is not the file that the Hub named.
        Exception: the client library's own errors; see `hub_errors`.
    """
    from huggingface_hub import hf_hub_download

    path = Path(hf_hub_download(repository, name, revision=revision, repo_type=kind))
    _check(path.resolve(), f"hf://{repository}/{name}")
    return path


def fetch_snapshot(repository: str, revision: str | None, patterns: Sequence[str]) -> Path:
    """Return the folder of a revision in the Hub's cache, with the files that match, fetched if they are not there.

    Raises:
        EnvironmentFailure: one that was fetched is not the file that the Hub named.
        Exception: the client library's own errors; see `hub_errors`.
    """
    from huggingface_hub import constants, snapshot_download

    blobs = Path(constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}" / "blobs"
    before = {path.name for path in blobs.glob("*")}
    folder = Path(snapshot_download(repository, revision=revision, allow_patterns=list(patterns)))
    names = {path.resolve(): path.relative_to(folder) for path in folder.rglob("*") if path.is_symlink()}
    for path in sorted(blobs.glob("*")):
        if path.name not in before:
            _check(path, f"hf://{repository}/{names.get(path.resolve(), path.name)}")
    return folder


def refuse_other(path: Path, listed: str | None, where: str) -> None:
    """Refuse a fetched file that is not the one of that SHA-256 in the Hub's list of files; None if it lists none.

    Raises:
        EnvironmentFailure: it is another one.
    """
    blob = path.resolve()
    if listed is not None and _SHA256.fullmatch(blob.name) and blob.name != listed:
        _refuse(blob, where)


def _check(blob: Path, where: str) -> None:
    """Hold a file in the cache against its own name, as far as that is a hash."""
    other = (_SHA256.fullmatch(blob.name) and file_hash(blob) != blob.name) or (
        _GIT.fullmatch(blob.name) and _git_hash(blob) != blob.name
    )
    if other:
        _refuse(blob, where)


def _refuse(blob: Path, where: str) -> None:
    with suppress(OSError):
        blob.unlink()
    raise EnvironmentFailure(
        f"{where}: what came is not the file that the Hub named (its hash is another); it was taken out of the Hub's "
        "cache again, run the same command again"
    )


def _git_hash(path: Path) -> str:
    digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()
