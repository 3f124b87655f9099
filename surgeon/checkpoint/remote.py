"""Files on the Hugging Face Hub, read in parts by HTTP range requests; nothing goes to the disk.

A repository is pinned to one commit when it is looked up, so that all that is read of it belongs together.
Address, token and proxies are those of the Hub's own client library (`HF_ENDPOINT`, `hf auth login`, `HF_TOKEN`).
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from surgeon.checkpoint.hub import hub_errors, is_transport
from surgeon.checkpoint.plain_json import NotPlain, as_size, as_text
from surgeon.errors import CheckpointError, EnvironmentFailure

_COMMIT = re.compile(r"[0-9a-f]{40,64}")
_PART = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")
TRIES = 5  # a connection that breaks is resumed where it broke, so many times without a byte of progress


@dataclass(frozen=True)
class RemoteFile:
    """One file of a repository at a commit. `sha256` is known where the file is stored as a large one."""

    repository: str
    commit: str
    name: str
    size: int
    sha256: str | None = None

    def __str__(self) -> str:
        return f"hf://{self.repository}@{self.commit[:12]}/{self.name}"


def look_up(repository: str, revision: str | None) -> tuple[str, list[RemoteFile]]:
    """Ask the Hub for the commit of a revision and its list of files: one request.

    Raises:
        The client library's own errors; see `hub_errors`.
    """
    from huggingface_hub import HfApi

    info = HfApi().model_info(repository, revision=revision, files_metadata=True)
    try:
        commit = as_text(info.sha, "the commit")
        if not _COMMIT.fullmatch(commit):
            raise NotPlain(f"{commit[:100]!r} is not a commit")
        return commit, [_listed(repository, commit, entry) for entry in info.siblings or ()]
    except NotPlain as error:
        raise EnvironmentFailure(f"hf://{repository}: the Hub's list of its files is damaged: {error}") from None


def _listed(repository: str, commit: str, entry: Any) -> RemoteFile:
    name = as_text(entry.rfilename, "the name of a file")
    if name.startswith("/") or {"..", "."} & set(name.split("/")) or set("\\\0") & set(name):
        raise NotPlain(f"{name[:100]!r} is not a file's name")
    size = as_size(entry.size or 0, f"the size of {name}")
    digest = as_text(entry.lfs.sha256, f"the SHA-256 of {name}") if entry.lfs else None
    return RemoteFile(repository, commit, name, size, digest)


def stream_range(file: RemoteFile, start: int, count: int) -> Iterator[bytes]:
    """Yield `count` bytes from byte `start` on as they arrive, with one request if the connection holds.

    Raises:
        InputError: the Hub refuses the file: log in, ask for access, mend the name.
        CheckpointError: the file ends before that.
        EnvironmentFailure: the Hub or the network gave out, or parts of files are not served.
    """
    position, stop, failures = start, start + count, 0
    with hub_errors(str(file)):
        while position < stop:
            before = position
            try:
                with _response(file, position, stop) as response:
                    _check(file, response, position, stop)
                    for piece in response.iter_bytes():  # to its very end, so that the connection serves again
                        if position == stop:
                            break
                        yield piece[: stop - position]
                        position = min(position + len(piece), stop)
                if position == stop:
                    return
                raise EnvironmentFailure(f"{file}: the Hub sent less than byte {position} to {stop - 1}; try again")
            except Exception as error:
                failures = 1 if position > before else failures + 1
                answered = not is_transport(error) or hasattr(error, "server_message")  # and no broken line
                if answered or failures == TRIES:
                    raise
                time.sleep(min(2.0 ** (failures - 1), 8.0))


def _response(file: RemoteFile, position: int, stop: int) -> Any:
    from huggingface_hub import constants, hf_hub_url
    from huggingface_hub.utils import build_hf_headers, http_stream_backoff

    headers = {
        **build_hf_headers(),
        "Range": f"bytes={position}-{stop - 1}",
        "Accept-Encoding": "identity",  # a range of compressed bytes would be another one
    }
    # The library's retries cover refusals for a time (429, 5xx); of a broken line only we know what has arrived.
    return http_stream_backoff(
        "GET",
        hf_hub_url(file.repository, file.name, revision=file.commit),
        headers=headers,
        timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT,
        follow_redirects=True,
        retry_on_exceptions=(),
    )


def _check(file: RemoteFile, response: Any, position: int, stop: int) -> None:
    from huggingface_hub.utils import hf_raise_for_status

    if response.status_code == 416:
        raise CheckpointError(
            f"{file}: ends before byte {stop - 1}; the file is truncated, or not the one that was listed"
        )
    if response.status_code >= 400:
        response.read()
    hf_raise_for_status(response)
    if response.status_code != 206 and not (position == 0 and stop == file.size):
        raise EnvironmentFailure(
            f"{file}: the server, or a proxy before it, does not serve parts of files (it answered a range request "
            f"with {response.status_code}); download the repository with `hf download {file.repository}` and name its "
            "folder"
        )
    part = _PART.fullmatch(response.headers.get("Content-Range", ""))
    if response.status_code == 206 and (
        part is None or int(part[1]) != position or int(part[2]) >= stop or part[3] not in ("*", str(file.size))
    ):
        said = response.headers.get("Content-Range", "(nothing)")[:100]
        raise EnvironmentFailure(
            f"{file}: asked for bytes {position} to {stop - 1} of {file.size}, the Hub sent others ({said!r}); "
            "try again"
        )
