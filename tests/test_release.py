"""A release: what is built is looked at before a person signs for it, and no page promises what is not published."""

from __future__ import annotations

import importlib.util
import re
import tarfile
import zipfile
from pathlib import Path
from types import ModuleType

import pytest
import yaml

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def release() -> ModuleType:
    spec = importlib.util.spec_from_file_location("release", ROOT / "scripts" / "release.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_nobody_is_told_to_install_from_the_index() -> None:
    """Until it is published there; `surgeon` in the index is another project."""
    folders = ("surgeon", "docs", "examples", "recipes", "scripts", "tests")
    paths = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.suffix in TEXTS]
    paths += [path for path in ROOT.iterdir() if path.suffix in TEXTS]
    told = re.compile(
        r"(pip|uv|pipx) [^\n`]*\b(install|add|with)\b[^\n`]*[ '\"](model-)?surgeon([\[ '\"`=]|$)", re.MULTILINE
    )
    assert told.search("pip install model-surgeon")
    assert told.search("pip install --quiet 'model-surgeon[trl]'")
    paths.remove(Path(__file__))
    assert [path.name for path in paths if told.search(path.read_text(encoding="utf-8"))] == []


TEXTS = (".py", ".md", ".txt", ".toml", ".ipynb", ".html", ".yaml")


@pytest.fixture
def built(tmp_path: Path, release: ModuleType) -> Path:
    """A checkout and what was built from it, as far as the checks look."""
    (tmp_path / "surgeon").mkdir()
    (tmp_path / "dist").mkdir()
    (tmp_path / "pyproject.toml").write_text('version = "1.2.3"\n', encoding="utf-8")
    (tmp_path / "surgeon" / "__init__.py").write_text('__version__ = "1.2.3"\n', encoding="utf-8")
    (tmp_path / "CHANGELOG.md").write_text("# Changelog\n\n## [Unreleased]\n\n## [1.2.3] - today\n", encoding="utf-8")
    with zipfile.ZipFile(tmp_path / "dist" / "model_surgeon-1.2.3-py3-none-any.whl", "w") as wheel:
        for name in release.NEEDED:
            wheel.writestr(name, "")
        wheel.writestr("model_surgeon-1.2.3.dist-info/METADATA", "Version: 1.2.3\nLicense-Expression: Apache-2.0\n")
    with tarfile.open(tmp_path / "dist" / "model_surgeon-1.2.3.tar.gz", "w:gz") as archive:
        for name in ("pyproject.toml", "LICENSE"):
            archive.add(ROOT / name, f"model_surgeon-1.2.3/{name}")
    return tmp_path


def test_what_is_complete_leaves_a_list_to_sign(
    built: Path, release: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    assert release.main(built, built / "dist") == 0
    said = capsys.readouterr().out
    assert "[x] model_surgeon-1.2.3-py3-none-any.whl" in said
    assert "git tag -s v1.2.3" in said


def test_what_is_wrong_is_said_all_at_once(
    built: Path, release: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    (built / "surgeon" / "__init__.py").write_text('__version__ = "1.2.2"\n', encoding="utf-8")
    (built / "CHANGELOG.md").write_text("# Changelog\n\n## [Unreleased]\n", encoding="utf-8")
    (wheel,) = (built / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("surgeon/__pycache__/x.pyc", "")
        archive.writestr("model_surgeon-1.2.3.dist-info/METADATA", "Version: 1.2.2\n")
        archive.writestr("surgeon/large", bytes(release.MOST_BYTES + 1))  # stored, not compressed
    assert release.main(built, built / "dist") == 1
    said = capsys.readouterr().err
    for what in ("another version", "no section [1.2.3]", "20.0 MB", "lacks surgeon/report/page.html", "__pycache__",
                 "says version 1.2.2", "licence"):  # fmt: skip
        assert what in said


def test_the_workflow_publishes_only_what_the_checks_passed_and_a_person_approved() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "release.yml").read_text(encoding="utf-8"))
    publish = workflow["jobs"]["publish"]
    assert publish["needs"] == "build"
    assert publish["environment"] == "release"
    assert publish["permissions"] == {"id-token": "write"}
    assert {"run": "make release"} in workflow["jobs"]["build"]["steps"]
    assert list(workflow[True]) == ["push"]  # YAML 1.1 reads `on` so
    assert workflow[True]["push"] == {"tags": ["v*"]}
