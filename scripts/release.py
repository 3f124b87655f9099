"""`make release`: look at what was built, and print what a person has still to do before and after publishing it.

Nothing is uploaded from here. A tag `vVERSION` starts `.github/workflows/release.yml`, which builds anew, checks by
this script, waits for a person's approval and publishes without a token, by trusted publishing.
"""

from __future__ import annotations

import re
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from email import message_from_bytes
from pathlib import Path

MOST_BYTES = 20_000_000  # of the wheel
# Without one of these a fresh installation does not do what the first page says.
NEEDED = (
    "surgeon/assets/tiny30/model.safetensors",
    "surgeon/assets/udhr30/score/en.txt",
    "surgeon/recipes/zero_core.yaml",
    "surgeon/report/page.html",
    "surgeon/report/card.md",
    "surgeon/py.typed",
)
FOREIGN = re.compile(r"(^|/)(tests|docs|models|out|__pycache__|\.[^/]+)(/|$)")
BY_A_PERSON = (
    "`make lint test docs` passed on this commit, on every Python of .github/workflows/ci.yml",
    "CHANGELOG.md says what a user will notice, and what breaks",
    "the wheel was installed into an empty environment, and `surgeon apply zero_core` said that all expectations held",
    "README.md shows its pictures in the index too, where relative links into docs/ need an address",
    "the index knows this repository and the workflow release.yml as a trusted publisher of the project",
    "after that: git tag -s v{version} && git push --tags, and approve the run in the environment `release`",
    "last: change the install words in README.md, docs/tutorial.md and surgeon/report/card.md",
)


def problems(root: Path, dist: Path) -> Iterator[str]:
    """Say what is wrong with the files that were built in `dist` from the checkout `root`."""
    version = _match(r'^version = "([^"]+)"', root / "pyproject.toml")
    if _match(r'^__version__ = "([^"]+)"', root / "surgeon" / "__init__.py") != version:
        yield f"surgeon/__init__.py says another version than pyproject.toml, {version}"
    if f"\n## [{version}]" not in (root / "CHANGELOG.md").read_text(encoding="utf-8"):
        yield f"CHANGELOG.md has no section [{version}]: rename [Unreleased], and begin a new one"
    wheels, sources = list(dist.glob("*.whl")), list(dist.glob("*.tar.gz"))
    if len(wheels) != 1 or len(sources) != 1:
        yield f"{dist} holds {len(wheels)} wheels and {len(sources)} source archives instead of one each: `make clean`"
        return
    yield from _wheel_problems(wheels[0], version)
    with tarfile.open(sources[0]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    yield from (f"{sources[0].name} lacks {name}" for name in ("pyproject.toml", "LICENSE") if name not in names)


def _wheel_problems(wheel: Path, version: str) -> Iterator[str]:
    size = wheel.stat().st_size
    if size > MOST_BYTES:
        yield f"{wheel.name} has {size / 1e6:.1f} MB, more than {MOST_BYTES / 1e6:.0f}"
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        yield from (f"{wheel.name} lacks {name}" for name in NEEDED if name not in names)
        yield from (f"{wheel.name} holds {name}" for name in names if FOREIGN.search(name))
        told = next((name for name in names if name.endswith(".dist-info/METADATA")), None)
        data = message_from_bytes(archive.read(told)) if told is not None else {}
    if data.get("Version") != version:
        yield f"{wheel.name} says version {data.get('Version')}, pyproject.toml {version}"
    if data.get("License-Expression") != "Apache-2.0":
        yield f"{wheel.name} does not say its licence"


def _match(pattern: str, path: Path) -> str:
    found = re.search(pattern, path.read_text(encoding="utf-8"), re.MULTILINE)
    return found[1] if found else ""


def main(root: Path, dist: Path) -> int:
    """Print what is wrong, or the list to sign off; returns the exit code."""
    found = list(problems(root, dist))
    for problem in found:
        print(f"error: {problem}", file=sys.stderr)
    if found:
        return 1
    version = _match(r'^version = "([^"]+)"', root / "pyproject.toml")
    for path in sorted(dist.iterdir()):
        print(f"[x] {path.name}: {path.stat().st_size / 1e6:.1f} MB, complete")
    for line in BY_A_PERSON:
        print(f"[ ] {line.format(version=version)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(__file__).parent.parent, Path(sys.argv[1])))
