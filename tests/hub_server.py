"""A Hub on loopback: enough of its HTTP API for the true `huggingface_hub` client, kept in memory.

Repositories, branches, pull requests, commits, LFS uploads, trees, and files served with ranges through a
redirect to another host name, as the real one does. `fail` makes chosen requests go wrong; `requests` tells
what was asked for and how many bytes went over the wire. Xet is not spoken: set `HF_HUB_DISABLE_XET=1`.
"""

from __future__ import annotations

import os
import re
import sys
import threading
from http.server import ThreadingHTTPServer
from pathlib import Path

from hub_api import TOKEN, Handler
from hub_store import INITIAL, LFS_SUFFIXES, Fault, Repo, Seen, Stored

__all__ = ["TOKEN", "LoopbackHub"]


class LoopbackHub(ThreadingHTTPServer):
    """Use as a context manager; listens on a free port of 127.0.0.1 while inside it."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self.server_port}"
        self.cdn = f"http://localhost:{self.server_port}/cdn"  # another host name: the client must not send its token
        self.repos: dict[str, Repo] = {}  # "models/org/name"
        self.objects: dict[str, bytes] = {}
        self.requests: list[Seen] = []
        self.faults: list[Fault] = []
        self.lock = threading.RLock()

    def __enter__(self) -> LoopbackHub:
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()

    def handle_error(self, request: object, client_address: object) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):  # a client that hangs up is no news
            super().handle_error(request, client_address)  # type: ignore[arg-type]

    def environment(self, home: Path, token: str | None = TOKEN) -> dict[str, str]:
        """Environment of a process that shall take this for the Hub."""
        result = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
        result |= {"HF_ENDPOINT": self.endpoint, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(home)}
        result |= {"HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1,localhost"}
        return result | ({"HF_TOKEN": token} if token is not None else {})

    def add(self, repo_id: str, files: dict[str, bytes], kind: str = "models", private: bool = False) -> str:
        """Put a repository here, or one more commit on its main branch; returns the commit."""
        repo = self.repos.setdefault(f"{kind}/{repo_id}", Repo(private))
        before = repo.commits[repo.refs["main"]] if repo.refs else self.stored(INITIAL, repo)
        return repo.commit("main", before | self.stored(files, repo))

    def stored(self, files: dict[str, bytes], repo: Repo) -> dict[str, Stored]:
        result = {path: Stored(data, path.endswith(LFS_SUFFIXES)) for path, data in files.items()}
        for one in result.values():
            if one.lfs:
                self.objects[one.sha256] = one.data
                repo.objects.add(one.sha256)
        return result

    def add_folder(self, repo_id: str, folder: Path, kind: str = "models", private: bool = False) -> str:
        paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        return self.add(repo_id, {p.relative_to(folder).as_posix(): p.read_bytes() for p in paths}, kind, private)

    def files(self, repo_id: str, revision: str = "main", kind: str = "models") -> dict[str, bytes]:
        """Contents of a revision by path, without the Hub's own .gitattributes."""
        repo = self.repos[f"{kind}/{repo_id}"]
        tree = repo.commits[repo.resolve(revision) or ""]
        return {path: stored.data for path, stored in tree.items() if path not in INITIAL}

    def fail(
        self, method: str, pattern: str, status: int = 0, *, drop_after: int | None = None, body: str = "",
        headers: dict[str, str] | None = None, times: float = 1, skip: int = 0, drip: float = 0.0,
        content: bytes | None = None,
    ) -> None:  # fmt: skip
        """Answer matching requests (`pattern` is searched in the path) with `status`, or hang up on them.

        `drop_after` bytes of the request's body (PUT, POST) or of the answer's (GET) the connection is closed. Without
        any of these the answer is the true one, but for `headers`, its `content`, and how slowly it comes (`drip`).
        """
        fault = Fault(method, pattern, status, drop_after, body, headers or {}, times, skip, drip, content)
        self.faults.append(fault)

    def seen(self, method: str, pattern: str = "") -> list[Seen]:
        """Requests so far by method and pattern."""
        return [one for one in self.requests if one.method == method and re.search(pattern, one.path)]

    def take_fault(self, method: str, path: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.method == method and fault.times > 0 and re.search(fault.pattern, path):
                    if fault.skip > 0:
                        fault.skip -= 1
                        continue
                    fault.times -= 1
                    return fault
        return None
