"""Beside the Hub's own command line: `hf surgeon` as its extension, and a script for its rented machines."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import fields
from datetime import datetime, timezone
from pathlib import Path

import pytest
from hub_server import LoopbackHub

from surgeon import __version__

ROOT = Path(__file__).parent.parent.parent
JOB = ROOT / "scripts" / "hf_job.py"


def test_the_hub_s_command_line_finds_the_extension(tmp_path: Path) -> None:
    """Its own dispatcher, on a folder laid out as `hf extensions install` leaves it."""
    extensions = pytest.importorskip(
        "huggingface_hub.cli.extensions", reason="extensions came with huggingface_hub 1.4"
    )
    assert 'hf-surgeon = "surgeon.cli:main"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    folder = tmp_path / extensions.EXTENSIONS_ROOT.relative_to("~") / "hf-surgeon"
    script = folder / "venv" / "bin" / "hf-surgeon"
    script.parent.mkdir(parents=True)
    script.write_text(f"#!{sys.executable}\nfrom surgeon.cli import main\nmain()\n", encoding="utf-8")  # as pip does
    script.chmod(0o755)
    known = {
        "owner": "org", "repo": "hf-surgeon", "repo_id": "org/hf-surgeon", "short_name": "surgeon", "type": "python",
        "executable_path": str(script), "installed_at": datetime(2026, 1, 1, tzinfo=timezone.utc),
        "executable_name": "hf-surgeon", "source": "org/hf-surgeon",  # of older releases
    }  # fmt: skip
    kind = extensions.ExtensionManifest
    kind(**{item.name: known[item.name] for item in fields(kind) if item.name in known}).save(folder)
    code = "import sys; from huggingface_hub.cli.extensions import dispatch_unknown_top_level_extension as dispatch; "
    code += "sys.exit(dispatch(sys.argv[1:], set()))"
    environment = {**os.environ, "HOME": str(tmp_path), "HF_HUB_DISABLE_UPDATE_CHECK": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, "surgeon"]
    done = subprocess.run([*command, "-V"], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"surgeon {__version__}\n"), done.stderr
    wrong = subprocess.run(
        [*command, "plan", "nowhere.yaml"], env=environment, capture_output=True, text=True, check=False
    )
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("error: nowhere.yaml: no such recipe file")


def test_the_job_s_header_is_one_that_the_client_reads() -> None:
    header = pytest.importorskip("huggingface_hub.cli._uv_script_header", reason="launch settings came with 2.x")
    found = header.parse_uv_script_header(JOB.read_text(encoding="utf-8"))
    assert found is not None
    assert found.secrets == ["HF_TOKEN"]
    assert found.flavor
    assert found.timeout


def test_the_job_pushes_all_that_is_to_stay(
    hub_here: LoopbackHub, llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = importlib.util.spec_from_file_location("hf_job", JOB)
    assert spec is not None
    assert spec.loader is not None
    job = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(job)
    hub_here.add_folder("org/source", llama)
    monkeypatch.chdir(tmp_path)
    changes = ["regions.core.score.samples=1", "verify.tokens=8", "verify.languages=[ar]", "verify.prompts=[]"]
    little = [word for change in changes for word in ("--set", change)]
    job.main(["org/source", "--repo", "you/cut", "--top", "0.05", "--languages", "de", *little])
    repo = hub_here.repos["models/you/cut"]
    assert repo.private
    there = hub_here.files("you/cut")
    assert {"README.md", "surgeon.json", "model.safetensors", "report.html", "report.json"} <= set(there)
    report = json.loads(there["report.json"])
    assert report["recipe"]["push"]["repo"] == "you/cut"
