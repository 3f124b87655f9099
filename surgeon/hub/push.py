"""Push: a variant becomes one commit of a repository on the Hub.

LFS files that the repository holds already are not sent again, so that an interrupted push goes on where it broke
off; those of the source model that no operation touched are copied by the Hub itself. Nothing shows in the
repository before the commit, and after it every file is compared with what the Hub says it has.

`HfApi.upload_folder` is not used: with hf_xet, huggingface_hub 2.4 sends a large folder in several commits,
so that half a variant would show. Nor can it have the Hub copy the source's shards, or send a card that is no file.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from surgeon.checkpoint.hub import explain, fetch_file, hub_errors
from surgeon.checkpoint.plain_json import NotPlain, as_object, read_object
from surgeon.errors import EnvironmentFailure, InputError, present
from surgeon.hub.parcel import PATCH, Item, Parcel, pack
from surgeon.progress import Progress
from surgeon.recipe.schema import Recipe
from surgeon.report.entries import PushReport
from surgeon.write.marker import CARD, MANIFEST, MARKER, RECIPE

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd, CommitOperationCopy, CommitOperationDelete, HfApi
    from huggingface_hub.hf_api import RepoFile

    Operation = CommitOperationAdd | CommitOperationCopy | CommitOperationDelete

_PULL_REQUESTS = 5  # of the latest, that are looked at for the same proposal: each takes a request for its files
# What the Hub or a person puts into a repository, which does not make it somebody's model.
_HARMLESS = (".gitattributes", CARD, "LICENSE")


@dataclass(frozen=True)
class Target:
    """Where to push: `org/name`, a branch of it (made if it is missing), and how."""

    repo: str
    revision: str | None = None
    private: bool = False
    create_pr: bool = False

    @property
    def address(self) -> str:
        """The target as other commands take it."""
        return f"hf://{self.repo}" + (f"@{self.revision}" if self.revision else "")


@dataclass(frozen=True)
class _Branch:
    """The target before the push: its head, its files, whether they are main's, and the latest pull requests."""

    head: str
    files: Mapping[str, RepoFile]
    fresh: bool
    pull_requests: Sequence[tuple[int, str]]


def check_repo_id(repo: str) -> None:
    """Refuse a name that the Hub would refuse.

    Raises:
        InputError: it is not of the form `org/name`.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise InputError(f"{repo!r} cannot name a repository on the Hub: {error}") from None
    if "/" not in repo:
        raise InputError(f"{repo!r}: name the owner too, as in `org/{repo}`")


def push(parcel: Parcel, target: Target) -> PushReport:
    """Send a parcel as one commit, or as a pull request; a parcel that is there already makes no commit.

    Raises:
        InputError: the Hub refuses, or the repository holds something else; nothing was changed.
        EnvironmentFailure: the network or the Hub gave out; the same call resumes.
    """
    from huggingface_hub import HfApi

    check_repo_id(target.repo)
    with hub_errors(target.address), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what the Hub remarks on the card may hold anything
        api = HfApi(library_name="model-surgeon")
        _open_repository(api, target)
        branch = _branch(api, target)
        _refuse_foreign(parcel, target, branch)
        changed = [item for item in parcel.items if not _same(item, branch.files.get(item.path))]
        stale = _stale(api, parcel, target, branch)
        unchanged = len(parcel.items) - len(changed)
        if not changed and not stale:
            return _nothing_to_do(parcel, target, f"{api.endpoint}/{target.repo}", branch.head)
        if target.create_pr:
            for number, head in branch.pull_requests:
                proposed = _tree(api, target.repo, head)
                if all(_same(item, proposed.get(item.path)) for item in parcel.items):
                    url = f"{api.endpoint}/{target.repo}/discussions/{number}"
                    return _nothing_to_do(parcel, target, url, head)
        copies = _copies(api, parcel, target, changed)
        try:
            commit = _commit(api, parcel, target, branch.head, _operations(parcel, changed, copies, stale))
        except Exception as error:  # if the Hub will not copy between the two repositories, send those files from here
            if not copies or not _copying_failed(error):
                raise
            copies = set()
            commit = _commit(api, parcel, target, branch.head, _operations(parcel, changed, copies, stale))
        _check_arrived(api, parcel, target, commit.oid)
        return PushReport(
            address=target.address,
            url=commit.pr_url or commit.commit_url,
            commit=commit.oid,
            sent=len(changed) - len(copies),
            copied=len(copies),
            removed=len(stale),
            unchanged=unchanged,
        )


def _nothing_to_do(parcel: Parcel, target: Target, url: str, head: str) -> PushReport:
    unchanged = len(parcel.items)
    return PushReport(address=target.address, url=url, commit=head, sent=0, copied=0, removed=0, unchanged=unchanged)


def push_variants(recipe: Recipe, output: Path, jobs: int, progress: Progress) -> dict[str, PushReport]:
    """Push the variants of a recipe that was carried out into `output`; all are checked before the first is sent.

    Raises:
        SurgeonError: see `pack` and `push`.
    """
    spec, parcels = present(recipe.push), {}
    for name in recipe.pushed_variants():
        repo, revision = spec.place(name)
        target, ending = Target(repo, revision, spec.private, spec.create_pr), ""
        if recipe.variants[name].write == "patch":
            ending = PATCH
        path = output / "variants" / f"{name}{ending}"
        parcels[name] = target, pack(path, target.address, weights=spec.weights, jobs=jobs)
    result = {}
    for name, (target, parcel) in parcels.items():
        with progress.task(f"push {name}", 1):
            result[name] = push(parcel, target)
    return result


def _open_repository(api: HfApi, target: Target) -> None:
    """Make the repository if it is missing; refuse one that is public where a private one was asked for."""
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        info = api.model_info(target.repo)
    except RepositoryNotFoundError:
        if target.create_pr:
            raise
        api.create_repo(target.repo, private=target.private or None, exist_ok=True)
        return
    if target.private and not info.private:
        raise InputError(f"{target.address}: exists and is public; make it private on the Hub, or push elsewhere")


def _branch(api: HfApi, target: Target) -> _Branch:
    """Read the target's branch, made off main if it is missing."""
    refs = api.list_repo_refs(target.repo, include_pull_requests=True)
    heads = {ref.name: ref.target_commit for ref in refs.branches}
    pulls = {ref.ref: ref.target_commit for ref in refs.pull_requests or ()}
    numbered = sorted(((int(ref.rpartition("/")[2]), head) for ref, head in pulls.items()), reverse=True)
    heads |= pulls
    name = target.revision or "main"
    if name not in heads:
        if target.create_pr or name.startswith("refs/"):
            raise InputError(f"{target.address}: the repository has no branch '{name}' to make a pull request to")
        api.create_branch(target.repo, branch=name, exist_ok=True)
        heads[name] = heads["main"]
    fresh = name != "main" and heads[name] == heads.get("main")
    return _Branch(heads[name], _tree(api, target.repo, heads[name]), fresh, numbered[:_PULL_REQUESTS])


def _tree(api: HfApi, repo: str, revision: str) -> dict[str, RepoFile]:
    from huggingface_hub.hf_api import RepoFile

    entries = api.list_repo_tree(repo, recursive=True, revision=revision)
    return {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}


def _refuse_foreign(parcel: Parcel, target: Target, branch: _Branch) -> None:
    """Refuse to put a variant over a model that surgeon did not push, such as the source itself."""
    others = [path for path in branch.files if path not in _HARMLESS]
    if others and not _ours(branch) and not branch.fresh and not target.create_pr:
        raise InputError(
            f"{target.address}: holds files that surgeon did not push ({', '.join(sorted(others)[:3])}); "
            "push to a new branch with --revision, or propose it with --create-pr"
        )


def _ours(branch: _Branch) -> bool:
    """True for what surgeon pushed: a variant has a marker, a patch stands beside its manifest with nothing else."""
    others = set(branch.files) - {*_HARMLESS, MANIFEST, RECIPE}
    patches = {path for path in others if path.endswith(PATCH)}
    return MARKER in branch.files or (MANIFEST in branch.files and bool(patches) and others == patches)


def _same(item: Item, remote: RepoFile | None) -> bool:
    """True if the Hub has this very content: by SHA-256 for an LFS file, by git's hash for any other."""
    if remote is None or remote.size != item.size:
        return False
    if remote.lfs is not None:
        return remote.lfs.sha256 == item.sha256
    data = item.content if isinstance(item.content, bytes) else item.content.read_bytes()
    return remote.blob_id == hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _stale(api: HfApi, parcel: Parcel, target: Target, branch: _Branch) -> list[str]:
    """Return what an earlier push put there, by its manifest, and this one does not hold."""
    gone = set(branch.files) - {item.path for item in parcel.items} - set(_HARMLESS)
    if not gone or MANIFEST not in branch.files or not _ours(branch):
        return []
    try:
        named = set(as_object(read_object(fetch_file(target.repo, MANIFEST, branch.head)).get("outputs"), "outputs"))
    except NotPlain:
        return []
    return sorted(gone & named)


def _copies(api: HfApi, parcel: Parcel, target: Target, changed: list[Item]) -> set[str]:
    """Return which of the changed files the Hub can copy from the source: LFS files that nothing touched."""
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.hf_api import RepoFile

    if parcel.origin is None or parcel.origin[0] == target.repo:
        return set()
    repo, revision = parcel.origin
    wanted = {item.path: item for item in changed if not isinstance(item.content, bytes)}
    try:
        sources = api.get_paths_info(repo, list(wanted), revision=revision)
    except HfHubHTTPError:
        return set()  # the source is gone, or not ours to see: then the files are sent from here
    return {
        file.path
        for file in sources
        if isinstance(file, RepoFile) and file.lfs and file.xet_hash and _same(wanted[file.path], file)
    }


def _operations(parcel: Parcel, changed: Sequence[Item], copies: set[str], stale: Sequence[str]) -> list[Operation]:
    """Return what the commit does: files that the Hub copies from the source, files that are sent, files that go."""
    from huggingface_hub import CommitOperationAdd, CommitOperationCopy, CommitOperationDelete

    operations: list[Operation] = [CommitOperationDelete(path, is_folder=False) for path in stale]
    for item in changed:
        if item.path in copies and parcel.origin is not None:
            repo, revision = parcel.origin
            operations.append(
                CommitOperationCopy(
                    item.path, item.path, src_revision=revision, src_repo_id=repo, src_repo_type="model"
                )
            )
        else:
            content = item.content if isinstance(item.content, bytes) else str(item.content)
            operations.append(CommitOperationAdd(item.path, content))
    return operations


def _commit(api: HfApi, parcel: Parcel, target: Target, parent: str, operations: list[Operation]) -> Any:
    return api.create_commit(
        target.repo,
        operations,
        commit_message=f"Variant {parcel.folder.resolve().name.removesuffix(PATCH)}, made by surgeon",
        revision=target.revision,
        create_pr=target.create_pr,
        parent_commit=parent,
    )


def _copying_failed(error: BaseException) -> bool:
    """True if it was the Hub's copying that failed, and not the network."""
    from huggingface_hub.errors import FileDuplicationError, HfHubHTTPError

    if isinstance(error, FileDuplicationError):
        return True
    if isinstance(error, HfHubHTTPError):
        at_copying = "lfs-files/duplicate" in str(error.response.request.url)
        return at_copying and not isinstance(explain(error, ""), EnvironmentFailure)
    return False


def _check_arrived(api: HfApi, parcel: Parcel, target: Target, commit: str) -> None:
    arrived = _tree(api, target.repo, commit)
    wrong = [item.path for item in parcel.items if not _same(item, arrived.get(item.path))]
    if wrong:
        raise EnvironmentFailure(
            f"{target.address}: {wrong[0]} did not arrive as it was sent"
            + (f", nor did {len(wrong) - 1} others" if len(wrong) > 1 else "")
            + "; run the same command again"
        )
