"""The documentation as a site: it builds, every link leads somewhere, and a link that does not is an error."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

pytest.importorskip("material", reason="mkdocs-material is not installed (the `docs` extra)")


def build(folder: Path, target: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(target)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


@pytest.mark.slow
def test_the_site_builds_and_its_links_hold(tmp_path: Path) -> None:
    done = build(ROOT, tmp_path / "site")
    assert done.returncode == 0, done.stderr
    pages = {path.stem for path in (ROOT / "docs").glob("*.md")} - {"README"}
    assert all((tmp_path / "site" / name / "index.html").is_file() for name in pages)
    copy = tmp_path / "copy"
    for name in ("docs", "scripts", "examples"):
        shutil.copytree(ROOT / name, copy / name)
    for name in ("mkdocs.yml", "CONTRIBUTING.md", "SECURITY.md"):
        shutil.copy(ROOT / name, copy / name)
    page = copy / "docs" / "gallery.md"
    page.write_text(
        page.read_text(encoding="utf-8") + "\n[gone](nowhere.md) [away](seeing.md#nowhere)\n", encoding="utf-8"
    )
    broken = build(copy, tmp_path / "broken")
    assert broken.returncode != 0
    assert "nowhere.md" in broken.stderr
    assert "#nowhere" in broken.stderr
