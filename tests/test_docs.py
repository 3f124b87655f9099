"""The pages: what they say to run runs, where they point to exists, and what is generated is current."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hub_server import LoopbackHub
from typer.testing import CliRunner
from undrawn import draw_nothing

from surgeon.api import find_recipe, plan_recipe
from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.cli import app
from surgeon.cli.running import is_published
from surgeon.recipe.reading import load_recipe
from surgeon.recipe.schema import Recipe, recipe_schema

ROOT = Path(__file__).parent.parent


def test_recipe_reference_is_current() -> None:
    spec = importlib.util.spec_from_file_location("recipe_reference", ROOT / "scripts" / "recipe_reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    page = (ROOT / "docs" / "recipe.md").read_text(encoding="utf-8")
    assert module.reference() == page, "docs/recipe.md is out of date: run `python scripts/recipe_reference.py`"


def test_recipe_reference_names_every_key_and_every_link_leads_somewhere() -> None:
    page = (ROOT / "docs" / "recipe.md").read_text(encoding="utf-8")
    schema = recipe_schema()
    for node in (schema, *schema["$defs"].values()):
        for key in node.get("properties", {}):
            assert f"| `{key}` |" in page
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    assert [row for row in rows if row.endswith("|  |")] == []  # each has a meaning
    headings = {line.removeprefix("## ").lower() for line in page.splitlines() if line.startswith("## ")}
    assert set(re.findall(r"\(#(\w+)\)", page)) <= headings


# What the pages say beside surgeon's own commands, and why it is not run here.
NOT_RUN = {
    "pip install": "tests/test_wheel.py installs the package into an empty environment",
    "hf auth login": "asks for a token",
    "hf extensions": "installs from a repository; tests/hub/test_hf.py runs the console script",
    "hf surgeon": "the same commands, by way of the extension",
    "hf jobs": "runs on rented machines; tests/hub/test_hf.py reads the script's header as the client does",
    "surgeon chat out --serve": "serves until it is ended; tests/chat/test_serving.py does that",
    "surgeon apply paper/smollm2/": "needs SmolLM2's weights; tests/recipe/test_shipped_recipes.py plans these recipes",
    "surgeon apply methods/smollm2/": "the same",
    "surgeon apply methods/super_experts": "takes what tests/model/test_upcycle.py makes a smaller one of",
    "surgeon apply methods/stitch --output": "needs texts that are not shipped; the recipe itself is run before",
    "make ": "continuous integration runs these",
    "python benchmarks/": "measures, for minutes",
    "python examples/freeze_matrix.py": "trains in every setting that is installed, for minutes",
}
FRAGMENTS = {"freezing.md": "pieces of a training loop; tests/test_freeze_*.py run them in whole ones"}
# Run with more text by tests/recipe/test_shipped_recipes.py; here, where nothing else is said to them, planned.
RUN_THERE = {"paper/claim1", "paper/claim2", "paper/claim3", "paper/claim4", "scores", "sweep", "methods/super_weight"}
# Pictures are drawn for these pages; for the others drawing would take longer than all that they say.
DRAWN = {"python.md"}
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])


def steps(page: str) -> Iterator[tuple[str, str]]:
    """Yield what a reader of a page would do, in order: (console | python | a file's name, its text)."""
    fence, lines = "", []
    for line in page.replace("\\\n", "").splitlines():
        if line.startswith("```"):
            if fence in ("console", "python"):
                yield from ((fence, one) for one in (lines if fence == "console" else ["\n".join(lines)]))
            elif lines and re.fullmatch(r"# [\w.-]+\.yaml", lines[0]):
                yield lines[0].removeprefix("# "), "\n".join(lines) + "\n"
            fence, lines = ("" if fence else line.removeprefix("```") or "text"), []
        elif fence:
            lines.append(line)
        elif line.startswith("    surgeon "):
            yield "console", "$ " + line.strip()
        else:
            # In running text, `surgeon diff A B` is a synopsis; `surgeon diff` and `surgeon diff --region` are names.
            inline = re.findall(r"`(surgeon \w+ [^-`][^`]*)`", line)
            yield from (("console", f"$ {command}") for command in inline if not re.search(r"\b[A-Z]+\b", command))


def prepare(folder: Path) -> None:
    """Lay out what the pages take for granted: models, some of them trained on, and the shipped recipes."""
    (folder / "recipes").symlink_to(ROOT / "recipes")
    (folder / "texts").mkdir()
    for code, shipped in (("yo", "tr"), ("en", "en")):
        shipped_text = ROOT / "surgeon" / "assets" / "udhr30" / "eval" / f"{shipped}.txt"
        shutil.copy(shipped_text, folder / "texts" / f"{code}.txt")
    trained = [f"out/stitch/{language}/trained/nothing-0.0003-0" for language in ("zh", "es")]
    for name in ("my-model", "A", "B", "checkpoint-500", "out/claim5/trained/nothing-0.0003-0", *trained):
        shutil.copytree(ROOT / "surgeon" / "assets" / "tiny30", folder / name)
    for name, byte in (("B", b"<"), (trained[0], b"<"), (trained[1], b"=")):
        checkpoint = Checkpoint.open(folder / name)
        with checkpoint.headers[0].path.open("r+b") as file:
            file.seek(checkpoint.tensors["model.layers.0.mlp.up_proj.weight"].offset)
            file.write(byte * 64)


def run_command(command: str) -> None:
    """Run a line of a page."""
    arguments = shlex.split(command.removeprefix("$ "))[1:]
    if arguments[0] == "apply" and set(arguments[1:]) <= RUN_THERE:
        arguments.append("--dry-run")
    if arguments[0] in ("cut", "score") or (arguments[0] == "apply" and not is_published(arguments[1])):
        recipe = load_recipe(find_recipe("zero_core" if arguments[0] == "cut" else arguments[1])).as_written
        little = [*on_little_text(recipe), *([] if arguments[0] == "cut" else at_two_points(recipe))]
        given = {argument.partition("=")[0] for argument in arguments}
        arguments += [word for change in little if change.partition("=")[0] not in given for word in ("--set", change)]
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert done.exit_code == 0, f"{command}\n{done.output}"


def on_little_text(recipe: Recipe) -> list[str]:
    """Return changes under which a recipe takes seconds; its bounds then mean nothing."""
    changes = [
        f"regions.{name}.score.{change}"
        for name, region in recipe.regions.items()
        if region.score is not None and region.score.on_text is not None
        for change in ("samples=2", "sequence_length=32")
    ]
    if recipe.verify is not None:
        changes += ["verify.tokens=16", "verify.expect=[]", "verify.new_tokens=2"]
        if recipe.verify.languages == "all" and not isinstance(recipe.corpus, dict):
            changes.append("verify.languages=[ar, en, zh]")
    return changes


def at_two_points(recipe: Recipe) -> list[str]:
    """Return changes by which each axis of a recipe's sweeps takes its first and its last value alone."""
    return [
        f"variants.{name}.sweep.{axis}.to={json.dumps([spec.to[0], spec.to[-1]])}"
        for name, variant in recipe.variants.items()
        for axis, spec in variant.sweep.items()
        if len(spec.to) > 2
    ]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_what_a_page_says_runs(
    path: Path,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    hub_here: LoopbackHub,
    shared_cache: Path,
) -> None:
    """Every command and every piece of Python of a page, in order, on the builtin model and a Hub on loopback."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SURGEON_CACHE", str(shared_cache))
    if path.name not in DRAWN:
        monkeypatch.setenv("SURGEON_CACHE", str(tmp_path_factory.getbasetemp() / "scores-of-the-pages"))
        draw_nothing(monkeypatch)
    prepare(tmp_path)
    names: dict[str, Any] = {}
    for kind, text in steps(path.read_text(encoding="utf-8")):
        if kind == "console":
            assert text.startswith("$ "), text
            if not text.startswith(tuple(f"$ {start}" for start in NOT_RUN)):
                assert text.startswith("$ surgeon "), f"{path.name} says `{text}`, which nothing runs or excuses"
                run_command(text)
        elif kind == "python":
            if path.name not in FRAGMENTS:
                exec(compile(text, path.name, "exec"), names)
        else:
            Path(kind).write_text(text, encoding="utf-8")


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    page = path.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#\s]*)(?:#[\w-]*)?\)", page):
        if target and not target.startswith("http"):
            assert (path.parent / target).exists(), target


def sentences(page: str) -> Iterator[str]:
    """Yield the sentences of a page's running text, its tables' cells and its lists' items, without blocks of code."""
    page = re.sub(r"^```.*?^```$|<[^>]*>|^    [^\n]*$", "", page, flags=re.MULTILINE | re.DOTALL)
    page = re.sub(r"\]\([^)]*\)", "]", page)
    for block in re.split(r"\n\s*\n|\n(?=[|#-])|\|", page):
        yield from re.split(r"(?<=[.?!])[*)\"']*\s+", " ".join(block.split()))


def test_no_sentence_of_the_readme_is_long() -> None:
    told = list(sentences((ROOT / "README.md").read_text(encoding="utf-8")))
    assert len(told) > 100
    assert [one for one in told if len(one.split()) > 30] == []


def test_the_map_of_the_pages_leads_to_each() -> None:
    linked = set(re.findall(r"\]\(([\w-]+\.md)\)", (ROOT / "docs" / "README.md").read_text(encoding="utf-8")))
    assert linked == {path.name for path in PAGES[1:]} - {"README.md"}


def test_the_pieces_of_recipes_on_sweeps_can_be_planned(tmp_path: Path) -> None:
    """Each piece of the page, put into the shipped recipe."""
    page = (ROOT / "docs" / "sweeps.md").read_text(encoding="utf-8")
    pieces = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    assert pieces
    shipped = yaml.safe_load((ROOT / "recipes" / "sweep.yaml").read_text(encoding="utf-8"))
    shipped["verify"].pop("expect")
    for text in pieces:
        merged = {**shipped}
        for key, value in yaml.safe_load(text).items():
            merged[key] = {**merged[key], **value} if key in ("regions", "verify") else value
        (tmp_path / "piece.yaml").write_text(yaml.safe_dump(merged), encoding="utf-8")
        made = plan_recipe(tmp_path / "piece.yaml")
        assert all(region.entries for region in made.regions.values())
        assert set(made.file.sweeps) == {name for name, value in merged["variants"].items() if "sweep" in value}


def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared_cache: Path) -> None:
    """All code cells in order; what a cell ends with can be shown, and the outputs kept in the file are small."""
    path = ROOT / "examples" / "first_look.ipynb"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SURGEON_CACHE", str(shared_cache))
    names: dict[str, Any] = {}
    cells = [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    for cell in cells:
        exec(compile("".join(cell["source"]), path.name, "exec"), names)
        assert all(output["output_type"] != "error" for output in cell["outputs"])
    assert names["drawings"]["perplexity"]._repr_svg_().startswith("<svg")
    assert path.stat().st_size < 100_000
