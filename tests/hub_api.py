"""The Hub's HTTP API, request by request; `hub_server.py` has the server around it."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml
from hub_store import LFS_SUFFIXES, Repo, Seen, Stored, git_hash

if TYPE_CHECKING:
    from hub_server import LoopbackHub

TOKEN = "hf_loopbackTokenThatMustNeverBeShown"


class _Refusal(Exception):
    """An answer with an error status."""

    def __init__(self, status: int, message: str, code: str = "", body: Any = None, **headers: str) -> None:
        self.status, self.body = status, body if body is not None else {"error": message}
        self.headers = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {}), **headers}


_REPO = r"/(?P<kind>models|datasets)/(?P<repo>[^/]+/[^/]+)"
_FILES = r"/(?:(?P<kind>datasets)/)?(?P<repo>[^/]+/[^/]+)"
_ROUTES = [
    ("GET", r"/api/whoami-v2", "whoami"),
    ("POST", r"/api/validate-yaml", "validate_yaml"),
    ("POST", r"/api/repos/create", "create_repo"),
    ("GET", rf"/api{_REPO}/tree/(?P<revision>[^/]+)(?:/(?P<path>.+))?", "tree"),
    ("GET", rf"/api{_REPO}/refs", "refs"),
    ("GET", rf"/api{_REPO}(?:/revision/(?P<revision>[^/]+))?", "info"),
    ("POST", rf"/api{_REPO}/paths-info/(?P<revision>[^/]+)", "paths_info"),
    ("POST", rf"/api{_REPO}/preupload/(?P<revision>[^/]+)", "preupload"),
    ("POST", rf"/api{_REPO}/commit/(?P<revision>[^/]+)", "commit"),
    ("POST", rf"/api{_REPO}/branch/(?P<branch>[^/]+)", "branch"),
    ("POST", rf"/api{_REPO}/lfs-files/duplicate", "duplicate"),
    ("POST", rf"{_FILES}\.git/info/lfs/objects/batch", "lfs_batch"),
    ("PUT", rf"/lfs{_REPO}/(?P<oid>\w+)", "lfs_put"),
    ("POST", rf"/lfs{_REPO}/verify", "lfs_verify"),
    ("GET", rf"{_FILES}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "resolve"),
    ("GET", r"/cdn/(?P<oid>\w+)/.+", "from_cdn"),
]
_WRITES = {"create_repo", "preupload", "commit", "branch", "duplicate", "lfs_batch"}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: LoopbackHub

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self._serve()

    do_HEAD = do_PUT = do_POST = do_GET  # noqa: N815

    def _serve(self) -> None:
        url = urlsplit(self.path)
        authorized = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        query, path = parse_qs(url.query), url.path
        self.seen = Seen(self.command, path, query, self.headers.get("Range"), authorized)
        self.fault = self.server.take_fault(self.command, path)
        with self.server.lock:
            self.server.requests.append(self.seen)
        body = self._read_body()
        if body is None:
            return
        try:
            if self.fault is not None and self.fault.status:
                raise _Refusal(self.fault.status, "arranged", body=self.fault.body, **self.fault.headers)
            self._route(path, body)
        except _Refusal as refusal:
            text = refusal.body if isinstance(refusal.body, str) else json.dumps(refusal.body)
            self._answer(text.encode(), refusal.status, refusal.headers)

    def _read_body(self) -> bytes | None:
        """Return the request's body, or None after hanging up in the middle of it."""
        stop = self.fault.drop_after if self.fault is not None and self.command in ("PUT", "POST") else None
        chunks: list[bytes] = []
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            while size := int(self.rfile.readline(), 16):
                chunks.append(self.rfile.read(size))
                self.rfile.readline()
                if stop is not None and sum(map(len, chunks)) >= stop:
                    break
            else:
                self.rfile.readline()
        else:
            length = int(self.headers.get("Content-Length") or 0)
            chunks.append(self.rfile.read(length if stop is None else min(stop, length)))
        body = b"".join(chunks)
        self.seen.received = len(body)
        if stop is not None:
            self.close_connection = True
            return None
        return body

    def _route(self, path: str, body: bytes) -> None:
        method = "GET" if self.command == "HEAD" else self.command
        for verb, pattern, name in _ROUTES:
            found = re.fullmatch(pattern, path) if verb == method else None
            if found is not None:
                groups = {key: unquote(value) for key, value in found.groupdict().items() if value is not None}
                if "repo" in groups:
                    groups["key"] = f"{groups.pop('kind', 'models')}/{groups.pop('repo')}"
                self._check_token(name, groups.get("key"))
                if name in ("resolve", "from_cdn"):  # a client may leave these unread while it asks for others
                    getattr(self, f"_{name}")(**groups)
                    return
                with self.server.lock:
                    result = getattr(self, f"_{name}")(body, **groups)
                self._answer(json.dumps(result).encode())
                return
        raise _Refusal(404, f"no such page: {method} {path}")

    def _check_token(self, name: str, key: str | None) -> None:
        if self.seen.authorized or name in ("from_cdn", "lfs_put"):  # signed addresses carry their own right
            return
        if self.headers.get("Authorization"):
            raise _Refusal(401, "Invalid credentials in Authorization header")
        if name in _WRITES or name == "whoami":
            raise _Refusal(401, "Invalid username or password.")
        if key is not None and (key not in self.server.repos or self.server.repos[key].private):
            raise _Refusal(401, "Repository not found", "RepoNotFound")

    def _answer(self, data: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.seen.status = status
        if self.fault is not None and not self.fault.status:
            headers = {**(headers or {}), **self.fault.headers}
            data = data if self.fault.content is None else self.fault.content
        if self.fault is not None and self.fault.drip and self.command == "GET":
            self._drip(status, headers or {})
            return
        self.send_response(status)
        for key, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.command == "GET" and self.fault is not None and self.fault.drop_after is not None:
            data = data[: self.fault.drop_after]
            self.close_connection = True
        self.seen.sent = len(data)
        self.wfile.write(data)

    def _drip(self, status: int, headers: dict[str, str]) -> None:
        """Send a byte now and then, for ever; the client must go."""
        assert self.fault is not None
        self.send_response(status)
        for key, value in {"Content-Type": "application/json", **headers, "Content-Length": "1000000"}.items():
            self.send_header(key, value)
        self.end_headers()
        self.close_connection = True
        while True:
            self.wfile.write(b" ")
            self.seen.sent += 1
            threading.Event().wait(self.fault.drip)

    def _repo(self, key: str) -> Repo:
        if key not in self.server.repos:
            raise _Refusal(404, "Repository not found", "RepoNotFound")
        return self.server.repos[key]

    def _tree_of(self, key: str, revision: str) -> tuple[str, dict[str, Stored]]:
        repo = self._repo(key)
        sha = repo.resolve(revision)
        if sha is None:
            raise _Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return sha, repo.commits[sha]

    # One method per route; a value returned is sent as JSON.

    def _whoami(self, body: bytes) -> Any:
        auth = {"type": "access_token", "accessToken": {"displayName": "test", "role": "write"}}
        return {"type": "user", "name": "tester", "fullname": "Tester", "orgs": [{"name": "org"}], "auth": auth}

    def _validate_yaml(self, body: bytes) -> Any:
        content = json.loads(body)["content"]
        found = re.match(r"^---\r?\n(.*?)\r?\n---(\r?\n|$)", content, re.DOTALL)
        try:
            front = yaml.safe_load(found[1]) if found else {}
            problems = [] if isinstance(front, dict) else ["the metadata is no mapping"]
        except yaml.YAMLError as error:
            problems = [str(error)]
        if problems:
            raise _Refusal(400, "bad metadata", body={"errors": [{"message": text} for text in problems]})
        return {"errors": [], "warnings": [] if found else [{"message": "empty or missing yaml metadata"}]}

    def _create_repo(self, body: bytes) -> Any:
        asked = json.loads(body)
        name = f"{asked['organization'] or 'tester'}/{asked['name']}"
        kind, url = f"{asked.get('type') or 'model'}s", f"{self.server.endpoint}/{name}"
        if f"{kind}/{name}" in self.server.repos:
            raise _Refusal(409, "You already created this repo", body={"error": "already there", "url": url})
        self.server.repos[f"{kind}/{name}"] = Repo(asked.get("visibility") == "private")
        self.server.add(name, {}, kind)
        return {"url": url, "name": name, "id": name}

    def _info(self, body: bytes, key: str, revision: str = "main") -> Any:
        sha, tree = self._tree_of(key, revision)
        blobs = self.seen.query.get("blobs") is not None
        siblings = []
        for path, stored in tree.items():
            entry: dict[str, Any] = {"rfilename": path}
            if blobs:
                entry |= {"size": len(stored.data), "blobId": stored.oid}
                if stored.lfs:
                    pointer = len(stored.pointer)
                    entry["lfs"] = {"sha256": stored.sha256, "size": len(stored.data), "pointerSize": pointer}
            siblings.append(entry)
        name, private = key.partition("/")[2], self._repo(key).private
        return {"id": name, "sha": sha, "private": private, "siblings": siblings, "tags": [], "downloads": 0}

    def _refs(self, body: bytes, key: str) -> Any:
        refs = self._repo(key).refs.items()
        branches = [{"name": r, "ref": f"refs/heads/{r}", "targetCommit": sha} for r, sha in refs if r[:5] != "refs/"]
        pulls = [{"name": r, "ref": r, "targetCommit": sha} for r, sha in refs if r.startswith("refs/pr/")]
        return {"branches": branches, "converts": [], "tags": [], "pullRequests": pulls}

    def _tree(self, body: bytes, key: str, revision: str, path: str = "") -> Any:
        tree = self._tree_of(key, revision)[1]
        inside = f"{path}/" if path else ""
        if path and not any(name.startswith(inside) for name in tree):
            raise _Refusal(404, f"{path} does not exist", "EntryNotFound")
        recursive = self.seen.query.get("recursive", ["false"])[0].lower() == "true"
        entries, folders = [], set()
        for name in sorted(name for name in tree if name.startswith(inside)):
            parts = name.removeprefix(inside).split("/")
            folders |= {inside + "/".join(parts[:depth]) for depth in range(1, len(parts) if recursive else 2)}
            if recursive or len(parts) == 1:
                entries.append(tree[name].entry(name))
        folders -= set(tree)
        return [{"type": "directory", "path": f, "oid": git_hash(f.encode()), "size": 0} for f in folders] + entries

    def _paths_info(self, body: bytes, key: str, revision: str) -> Any:
        tree = self._tree_of(key, revision)[1]
        result = []
        for path in parse_qs(body.decode()).get("paths", []):
            if path in tree:
                result.append(tree[path].entry(path))
            elif any(name.startswith(f"{path}/") for name in tree):
                result.append({"type": "directory", "path": path, "oid": git_hash(path.encode()), "size": 0})
        return result

    def _preupload(self, body: bytes, key: str, revision: str) -> Any:
        tree = self._tree_of(key, revision)[1]
        files = []
        for asked in json.loads(body)["files"]:
            path, lfs = asked["path"], asked["path"].endswith(LFS_SUFFIXES) or asked["size"] > 10_000_000
            there = tree.get(path)
            oid = None if there is None else there.sha256 if there.lfs else there.oid
            entry = {"path": path, "uploadMode": "lfs" if lfs else "regular", "shouldIgnore": False, "oid": oid}
            files.append({k: v for k, v in entry.items() if v is not None})
        return {"files": files}

    def _branch(self, body: bytes, key: str, branch: str) -> Any:
        repo = self._repo(key)
        if branch in repo.refs:
            raise _Refusal(409, "Reference already exists")
        repo.refs[branch] = self._tree_of(key, json.loads(body or b"{}").get("startingPoint", "main"))[0]
        return {}

    def _lfs_batch(self, body: bytes, key: str) -> Any:
        repo, result = self._repo(key), []
        for asked in json.loads(body)["objects"]:
            entry = {"oid": asked["oid"], "size": asked["size"]}
            if asked["oid"] not in repo.objects:
                base = f"{self.server.endpoint}/lfs/{key}"
                upload, verify = {"href": f"{base}/{asked['oid']}"}, {"href": f"{base}/verify"}
                entry["actions"] = {"upload": upload, "verify": verify}
            result.append(entry)
        return {"transfer": "basic", "objects": result}

    def _lfs_put(self, body: bytes, key: str, oid: str) -> Any:
        if hashlib.sha256(body).hexdigest() != oid:
            raise _Refusal(400, "the content does not have this hash")
        self.server.objects[oid] = body
        self._repo(key).objects.add(oid)
        return {}

    def _lfs_verify(self, body: bytes, key: str) -> Any:
        asked = json.loads(body)
        if len(self.server.objects.get(asked["oid"], b"")) != asked["size"]:
            raise _Refusal(422, "not the size that was announced")
        return {}

    def _duplicate(self, body: bytes, key: str) -> Any:
        asked, source = json.loads(body), self._repo(key)
        target = self._repo(f"{asked['target']['type']}s/{asked['target']['name']}")
        failed = [f for f in asked["files"] if f["sha256"] not in source.objects]
        target.objects |= {f["sha256"] for f in asked["files"] if f["sha256"] in source.objects}
        return {"failed": [{"sha256": f["sha256"], "error": "not found"} for f in failed]}

    def _commit(self, body: bytes, key: str, revision: str) -> Any:
        repo, (parent, tree) = self._repo(key), self._tree_of(key, revision)
        files = dict(tree)
        for item in map(json.loads, body.splitlines()):
            value = item["value"]
            if item["key"] == "header" and value.get("parentCommit") not in (None, parent):
                raise _Refusal(412, "A commit has happened since. Please refresh and try again.")
            if item["key"] == "file":
                files[value["path"]] = Stored(base64.b64decode(value["content"]), False)
            elif item["key"] == "lfsFile":
                if value["oid"] not in repo.objects:
                    raise _Refusal(400, "LFS pointer pointed to a file that does not exist")
                files[value["path"]] = Stored(self.server.objects[value["oid"]], True)
            elif item["key"] == "deletedFile":
                del files[value["path"]]
            elif item["key"] == "deletedFolder":
                files = {path: stored for path, stored in files.items() if not path.startswith(value["path"])}
        pull = 1 + sum(ref.startswith("refs/pr/") for ref in repo.refs) if self.seen.query.get("create_pr") else None
        if pull is None and revision in repo.commits:
            raise _Refusal(400, "a commit goes onto a branch")
        sha = repo.commit(revision if pull is None else f"refs/pr/{pull}", files)
        url = f"{self.server.endpoint}/{key.removeprefix('models/')}"
        request = f"{url}/discussions/{pull}" if pull is not None else None
        return {"success": True, "commitOid": sha, "commitUrl": f"{url}/commit/{sha}", "pullRequestUrl": request}

    def _resolve(self, key: str, revision: str, path: str) -> None:
        sha, tree = self._tree_of(key, revision)
        if path not in tree:
            raise _Refusal(404, f"{path} does not exist", "EntryNotFound", **{"X-Repo-Commit": sha})
        stored = tree[path]
        if not stored.lfs:
            self._send_file(stored.data, {"X-Repo-Commit": sha, "ETag": f'"{stored.oid}"'})
            return
        headers = {"X-Repo-Commit": sha, "X-Linked-Etag": f'"{stored.sha256}"', "X-Linked-Size": str(len(stored.data))}
        self._answer(b"", 302, {**headers, "Location": f"{self.server.cdn}/{stored.sha256}/{key}/{path}"})

    def _from_cdn(self, oid: str) -> None:
        if self.headers.get("Authorization"):
            raise _Refusal(400, "the token was sent to another host")
        self._send_file(self.server.objects[oid], {"ETag": f'"{oid}"'})

    def _send_file(self, data: bytes, headers: dict[str, str]) -> None:
        headers = {**headers, "Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
        asked = re.fullmatch(r"bytes=(\d*)-(\d*)", self.seen.range or "")
        if asked is None:
            self._answer(data, 200, headers)
            return
        start = int(asked[1]) if asked[1] else max(len(data) - int(asked[2]), 0)
        stop = min(int(asked[2]) + 1, len(data)) if asked[1] and asked[2] else len(data)
        if start >= len(data):
            raise _Refusal(416, "out of range", **{"Content-Range": f"bytes */{len(data)}"})
        self._answer(data[start:stop], 206, {**headers, "Content-Range": f"bytes {start}-{stop - 1}/{len(data)}"})
