"""What the Hub's client library raises, turned into our errors; the one place that knows its exceptions.

    401, 403, 404, 409, 412, other 4xx   InputError: log in, ask for the right, mend the name  (exit code 2)
    429, 5xx, dropped or no connection   EnvironmentFailure: the same command resumes          (exit code 3)

Messages are made of our own words and of what the server said, with anything that looks like a token removed;
the library's exceptions are not chained, since they print requests.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

from surgeon.checkpoint.hub_answers import guard_client
from surgeon.errors import EnvironmentFailure, InputError, SurgeonError

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
        if _is_transport(one):
            return EnvironmentFailure(f"{what}: the connection to the Hub broke ({_said(one)}); {_RESUMES}")
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
    rooms = [frame.tb_frame.f_globals.get("__name__", "") for frame in _frames(error)]
    ours = max((i for i, room in enumerate(rooms) if room.startswith("surgeon.")), default=-1)
    if not any(room.startswith("huggingface_hub.") for room in rooms[ours + 1 :]):
        return None
    said = f"{type(error).__name__}: {scrub(str(error))}"
    return EnvironmentFailure(f"{what}: the Hub's answer is not one that can be understood ({said}); try again")


def _frames(error: Exception) -> Iterator[TracebackType]:
    at = error.__traceback__
    while at is not None:
        yield at
        at = at.tb_next


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


def _is_transport(error: BaseException) -> bool:
    """True for an exception of the HTTP library below, whichever generation of it the client uses."""
    return any(
        cls.__module__.partition(".")[0] in ("httpx", "httpx2", "httpcore", "requests") for cls in type(error).__mro__
    )


def _said(error: BaseException) -> str:
    return scrub(str(error)) or type(error).__name__
