"""A recipe pushes, and so does the command line."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hub_server import TOKEN, LoopbackHub
from pushing import RECIPE, files_of, main

import surgeon
from surgeon.errors import InputError, RecipeError

pytest_plugins = ["pushing"]


def test_a_recipe_pushes_its_variants(hub_here: LoopbackHub, source: Path, tmp_path: Path) -> None:
    hub_here.add_folder("org/source", source)
    path = tmp_path / "two.yaml"
    text = RECIPE.replace("MODEL", "hf://org/source").replace("OUT", str(tmp_path / "two"))
    path.write_text(text + "push:\n  repo: org/two-{variant}\n  weights: false\n")
    report = surgeon.apply(path)
    assert {name: item.address for name, item in report.pushed.items()} == {
        "cut": "hf://org/two-cut", "halved": "hf://org/two-halved",
    }  # fmt: skip
    assert "model.safetensors.index.json" not in hub_here.files("org/two-cut")
    assert json.loads((tmp_path / "two" / "report.json").read_text())["pushed"].keys() == {"cut", "halved"}
    path.write_text(text + 'push: {repo: org/two, revision: "{variant}", variants: [cut]}\n')
    report = surgeon.apply(path, push=True)
    assert report.variants["cut"].reused  # where it goes makes it no other variant
    assert "model.safetensors.index.json" in hub_here.files("org/two", "cut")
    hub_here.requests.clear()
    assert surgeon.apply(path, push=False).pushed == {}
    assert not [seen for seen in hub_here.requests if seen.method in ("POST", "PUT")]
    path.write_text(text)
    with pytest.raises(InputError, match=r"--set push\.repo=org/name"):
        surgeon.apply(path, push=True)


@pytest.mark.parametrize(
    ("spec", "line", "words"),
    [
        ("push: {repo: org/x}", 11, "one place"),
        ("push: {repo: x, variants: [cut]}", 11, "the form org/name"),
        ("push: {repo: org/x, variants: [cat]}", 11, "did you mean 'cut'"),
        ("push: {repo: org/x, variants: [cut], revision: {variant}}", 11, "put quotes around it"),
        ("push: {repo: org/x, token: hf_secret}", 11, "unknown key 'token'"),
    ],
)
def test_mistakes_in_a_recipe_s_push(source: Path, tmp_path: Path, spec: str, line: int, words: str) -> None:
    path = tmp_path / "two.yaml"
    path.write_text(RECIPE.replace("MODEL", str(source)).replace("OUT", str(tmp_path / "two")) + spec + "\n")
    with pytest.raises(RecipeError, match=words) as caught:
        surgeon.api.plan_recipe(path)
    assert caught.value.problems[0].where == f"{path}:{line}"


def test_a_dry_run_contacts_nobody(
    hub_here: LoopbackHub, local_output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    variant = local_output / "variants" / "cut"
    main(["push", str(variant), "org/cut", "--dry-run"])
    shown = capsys.readouterr().out
    for path in [*files_of(variant), "recipe.yaml", "regions/some.region.safetensors"]:
        assert path in shown
    assert "damaged on purpose" in shown
    assert "the card names no licence" in shown
    assert "the card names no base model" in shown
    main(["push", str(variant), "org/cut", "--dry-run", "--json"])
    data = json.loads(capsys.readouterr().out)
    assert data["bytes"] == sum(entry["bytes"] for entry in data["files"].values())
    assert not hub_here.requests


def test_the_command_line_as_users_run_it(
    hub: LoopbackHub,
    surgeon_on_hub: Callable[..., subprocess.CompletedProcess[str]],
    local_output: Path,
    tmp_path: Path,
) -> None:
    """What goes through is a process of its own, which imports the client with its settings."""
    variant, home = local_output / "variants" / "cut", tmp_path / "home"
    hub.fail("PUT", "/lfs/", drop_after=100, times=99, skip=1)
    broken = surgeon_on_hub("push", variant, "org/cut", "--private")
    assert broken.returncode == 3
    hub.faults.clear()
    echo = json.dumps({"warnings": [{"message": f"you sent {TOKEN}"}], "errors": []})
    hub.fail("POST", "/api/validate-yaml", 200, body=echo, headers={"X-HF-Warning": f"token; {TOKEN} is old"})
    command, settings = (
        [sys.executable, "-m", "surgeon", "push", variant, "org/cut", "--private"],
        hub.environment(home),
    )
    done = subprocess.run(command, env=settings, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"{hub.endpoint}/org/cut/commit/" in done.stdout
    for word in ("cut", "org/cut/x"):
        assert surgeon_on_hub("push", variant, word).returncode == 2
    for output in (broken.stdout, broken.stderr, done.stdout, done.stderr):
        assert TOKEN not in output
        assert "Traceback" not in output
    assert not any(TOKEN.encode() in data for data in hub.files("org/cut").values())


def test_the_login_of_the_hub_s_own_client_is_used(
    hub: LoopbackHub,
    surgeon_on_hub: Callable[..., subprocess.CompletedProcess[str]],
    local_output: Path,
    tmp_path: Path,
) -> None:
    variant = local_output / "variants" / "cut"
    assert "hf auth login" in surgeon_on_hub("push", variant, "org/cut", token=None).stderr
    environment = hub.environment(tmp_path / "hf_home", token=None)
    client = [sys.executable, "-m", "huggingface_hub.cli.hf", "auth"]
    subprocess.run([*client, "login", "--token", TOKEN], env=environment, check=True, capture_output=True)
    who = subprocess.run([*client, "whoami"], env=environment, check=True, capture_output=True, text=True)
    assert "tester" in who.stdout
    done = surgeon_on_hub("push", variant, "org/cut", token=None)
    assert done.returncode == 0, done.stderr
    assert TOKEN not in done.stdout + done.stderr


def test_the_recipes_of_the_page_on_the_hub_can_be_planned(source: Path, tmp_path: Path) -> None:
    """Its commands are run with those of all pages."""
    page = (Path(__file__).parents[2] / "docs" / "hub.md").read_text(encoding="utf-8")
    recipe = RECIPE.replace("MODEL", str(source)).replace("OUT", "out").replace("cut:", "core-zeroed:")
    sections = re.findall(r"```yaml\n(push:.*?)```", page, re.DOTALL)
    assert len(sections) == 3
    for section in sections:
        (tmp_path / "one.yaml").write_text(recipe + section)
        surgeon.api.plan_recipe(tmp_path / "one.yaml", overrides=["push.variants=[core-zeroed]"])
