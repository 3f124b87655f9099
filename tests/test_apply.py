"""The main job from recipe to report, on the command line and in Python."""

from __future__ import annotations

import hashlib
import json
import math
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from conftest import with_pictures
from forking import run_forked, surgeon_forked

import surgeon
import surgeon.checkpoint.storage
import surgeon.scoring
from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.errors import InputError
from surgeon.region.region import Region
from surgeon.report.data import Report
from surgeon.report.words import quantity_text

RecipeMaker = Callable[..., Path]


def test_apply_writes_the_whole_output(recipe: RecipeMaker, tmp_path: Path) -> None:
    report = surgeon.apply(recipe())
    out = tmp_path / "out"
    assert {path.name for path in out.iterdir() if not path.name.startswith(".")} == {
        "figures", "manifest.json", "recipe.yaml", "regions", "report.html", "report.json", "variants",
    }  # fmt: skip
    assert [path.name for path in (out / "variants").iterdir()] == ["cut"]  # the control is measured only
    assert Report.load(out / "report.json") == report
    data = json.loads((out / "report.json").read_text())
    assert set(data["perplexity"]) == {"base", "cut", "control"}
    assert set(data["perplexity"]["base"]) == {"de", "fr"}
    assert data["regions"]["core"]["entries"] == Region.load(out / "regions" / "core.region.safetensors").entries
    for name, summary in data["summary"].items():
        logs = [entry["nll"] / entry["tokens"] for entry in data["perplexity"][name].values()]
        assert summary["geometric_mean_perplexity"] == pytest.approx(math.exp(sum(logs) / len(logs)))
    assert data["summary"]["base"]["ratio_to_base"] == 1.0


def test_the_manifest_hashes_what_is_there(
    recipe: RecipeMaker, llama: Path, texts: dict[str, str], tmp_path: Path
) -> None:
    surgeon.apply(recipe())
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    digest = hashlib.sha256((llama / "model.safetensors").read_bytes()).hexdigest()
    assert manifest["inputs"] == {"model.safetensors": digest}
    assert "variants/cut/model.safetensors" in manifest["outputs"]
    for name, expected in manifest["outputs"].items():
        assert hashlib.sha256((tmp_path / "out" / name).read_bytes()).hexdigest() == expected
    assert manifest["seeds"] == {"random": 7}
    for language, halves in manifest["corpus"]["text_sha256"].items():
        lines = Path(texts[language]).read_text(encoding="utf-8").splitlines()
        for half, first in (("score", 0), ("evaluate", 1)):
            text = "\n".join(lines[first::2]) + "\n"
            assert halves[half] == hashlib.sha256(text.encode()).hexdigest()


def test_the_resolved_recipe_repeats_the_run(recipe: RecipeMaker, tmp_path: Path) -> None:
    first = surgeon.apply(recipe())
    again = surgeon.apply(tmp_path / "out" / "recipe.yaml", output=tmp_path / "again")
    assert again.perplexity == first.perplexity
    assert again.regions == first.regions
    for name in ("core", "bottom", "random"):
        left, right = (tmp_path / o / "regions" / f"{name}.region.safetensors" for o in ("out", "again"))
        assert left.read_bytes() == right.read_bytes()


def test_a_push_that_goes_nowhere_is_refused_before_texts_are_read(
    recipe: RecipeMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("surgeon.run.Run.check_texts", lambda run: pytest.fail("texts were read"))
    with pytest.raises(InputError, match=r"--set push\.repo=org/name"):
        surgeon.apply(recipe(), push=True)


def test_a_second_recipe_on_the_same_model_scores_nothing_again(
    recipe: RecipeMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    surgeon.apply(recipe())
    monkeypatch.setattr("surgeon.scores.score_pass.ScorePass.run", lambda *args: pytest.fail("scored again"))
    other = recipe(**{"top: 0.05": "top: 0.02", "name: test": "name: other"})
    report = surgeon.apply(other, output=tmp_path / "other")
    assert report.regions["core"].fraction == pytest.approx(0.02, abs=0.003)


def test_one_more_language_is_all_that_is_scored(
    recipe: RecipeMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from surgeon.scores.score_pass import ScorePass

    real, scored = ScorePass.run, []

    def noted(self, *rest):  # type: ignore[no-untyped-def]
        scored.append(list(self.sequences))
        return real(self, *rest)

    monkeypatch.setattr(ScorePass, "run", noted)
    surgeon.apply(recipe(**{"languages: [de, fr]": "languages: [de]"}))
    surgeon.apply(recipe(), output=tmp_path / "elsewhere")
    assert scored == [["de"], ["fr"]]


def test_scores_follow_the_text_and_the_weights(
    recipe: RecipeMaker, make_model: Callable[..., Path], texts: dict[str, str]
) -> None:
    from surgeon.api import plan_recipe
    from surgeon.model.workplace import Workplace
    from surgeon.scores.grad_param import GradParam
    from surgeon.scoring import score_path

    score = GradParam(kind="grad_param", languages=["de"], samples=4, sequence_length=32)
    smaller = score.model_copy(update={"batch_size": 2})
    made = plan_recipe(recipe())
    tensors = made.scored_tensors(made.scores()[0])
    one = score_path(made.checkpoint, tensors, "a", score, Workplace("cpu", 1))
    other = Checkpoint.open(make_model("llama", seed=5))
    assert one == score_path(made.checkpoint, tensors, "a", score, Workplace("cpu", 1))
    assert one != score_path(made.checkpoint, tensors, "b", score, Workplace("cpu", 1))
    assert one != score_path(other, tensors, "a", score, Workplace("cpu", 1))
    assert one != score_path(made.checkpoint, tensors[1:], "a", score, Workplace("cpu", 1))
    assert one != score_path(made.checkpoint, tensors, "a", smaller, Workplace("cpu", 1))


def test_resharding_does_not_score_again(recipe: RecipeMaker, make_model: Callable[..., Path]) -> None:
    from surgeon.checkpoint.fingerprint import content_hash

    one, many = (Checkpoint.open(make_model("llama", shard=shard)) for shard in ("1GB", "20KB"))
    assert len(many.headers) > 1
    assert content_hash(one, 1) == content_hash(many, 2)


def test_plan_reads_headers_only_and_writes_nothing(
    recipe: RecipeMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = recipe()
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.setattr(
        surgeon.checkpoint.storage.mmap, "mmap", lambda *args, **kwargs: pytest.fail("read tensor bytes")
    )
    made = surgeon.plan_recipe(path)
    assert sorted(tmp_path.rglob("*")) == before
    numel = {info.name: info.numel for info in made.regions["core"].tensors}
    assert made.regions["core"].entries == sum(int(0.05 * n) for n in numel.values())
    assert made.variants["cut"].bytes_to_write == made.checkpoint.data_bytes
    assert made.variants["control"].bytes_to_write == 0


def test_the_plan_keeps_its_word(recipe: RecipeMaker) -> None:
    made = surgeon.plan_recipe(recipe())
    report = surgeon.apply(recipe())
    for name, region in report.regions.items():
        assert (region.entries, region.numel) == (made.regions[name].entries, made.regions[name].numel)
    assert report.variants["cut"].entries == made.variants["cut"].entries_at_most


def test_json_is_all_there_is_on_stdout(recipe: RecipeMaker) -> None:
    result = surgeon_forked("apply", recipe(), "--json")
    assert result.returncode == 0, result.stderr
    assert Report.model_validate_json(result.stdout).passed
    planned = surgeon_forked("apply", recipe(), "--dry-run", "--json")
    assert set(json.loads(planned.stdout)["variants"]) == {"cut", "control"}


def test_a_failed_expectation_exits_with_1_and_keeps_the_work(recipe: RecipeMaker, tmp_path: Path) -> None:
    bounds = (
        "{variant: cut, ratio_at_least: 1000000}, {variant: control, ratio_at_most: 9, language: de},"
        "{variant: cut, measurement: divergence, at_least: 1000},"
        "{variant: cut, measurement: divergence, quantity: agreement, at_most: 1, at: upper, language: de}"
    )
    expect = f"  window: 32\n  expect: [{bounds}]\n"
    result = surgeon_forked("apply", recipe(**{"  window: 32\n": expect}))
    assert result.returncode == 1, result.stderr
    assert "FAILED" in result.stdout
    report = Report.load(tmp_path / "out" / "report.json")
    assert [item.passed for item in report.expectations] == [False, True, False, True]
    found = report.measurements["divergence"]
    assert report.expectations[2].value == found.overall["cut"]["kl"].value
    assert report.expectations[3].value == found.found["cut"]["de"]["agreement"].high
    value = quantity_text(found.quantities[0], found.overall["cut"]["kl"].value)
    said = f"cut: KL from the base {value} nats/token, expected at least 1,000"
    assert f"FAILED {said}" in " ".join(result.stdout.split())
    assert said in (tmp_path / "out" / "report.html").read_text()


BAD = {
    "missing model": ("model: {llama}", "model: /nowhere/at/all", "/nowhere/at/all: no such file or folder"),
    "wrong tensor name": ("exclude: [norm]}}", "exclude: [model.layers.0.upproj]}}", "names no role and no tensor"),
    "wrong role": ("exclude: [norm]}}", "include: [router]}}", "has no tensor of role 'router'"),
    "language without text": ("languages: [de, fr]", "languages: [de, xx]", "no text for language 'xx'"),
    "layers": ("exclude: [norm]}}", "exclude: [norm], layers: [1, 0]}}", "the first layer, 1, comes after the last, 0"),
    "missing text": ("corpus: {{de: ", "corpus: {{en: /no/such.txt, de: ", "no such text file: /no/such.txt"),
    "nothing selected": ("top: 0.05", "top: 0.000001", "selects nothing"),
    "fraction": ("top: 0.05", "top: 5", "less than or equal to 1"),
    "unknown key": ("verify:", "verfiy:", "did you mean 'verify'?"),
    "norwegian": ("languages: [de, fr]", "languages: [de, no]", "the bare word `no` as false"),
    "inside the source": ("output: ", "output: {llama}/", "lies inside the source checkpoint"),
    "corpus": ("corpus: {{", "corpus: builtin:udh30 #", "no builtin corpus 'udh30'; did you mean 'udhr30'?"),
    "region file": ("regions:\n", "regions:\n  extra: {{file: /no/r.x}}\n", "/no/r.x: no such file"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", BAD)
def test_bad_input_gets_one_message_and_writes_nothing(
    mistake: str,
    recipe: RecipeMaker,
    llama: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from surgeon.cli import main

    old, new, message = BAD[mistake]
    path = recipe(**{old.format(llama=llama): new.format(llama=llama)})
    before = sorted(llama.rglob("*"))
    monkeypatch.setattr(sys, "argv", ["surgeon", "apply", str(path)])
    with pytest.raises(SystemExit) as caught:
        main()
    captured = capsys.readouterr()
    assert caught.value.code == 2
    assert message in captured.err
    assert all(line.startswith("error: ") for line in captured.err.splitlines())
    assert captured.out == ""
    assert not (tmp_path / "out").exists()
    assert sorted(llama.rglob("*")) == before


def test_a_damaged_checkpoint_exits_with_2_without_a_traceback(
    recipe: RecipeMaker, make_model: Callable[..., Path], llama: Path
) -> None:
    folder = make_model("llama", seed=4, shard="20KB")
    shard = sorted(folder.glob("*.safetensors"))[0]
    shard.write_bytes(shard.read_bytes()[:-4])
    result = surgeon_forked("apply", recipe(**{f"model: {llama}": f"model: {folder}"}))
    assert result.returncode == 2
    assert "truncated" in result.stderr
    assert "Traceback" not in result.stderr


def test_regions_from_a_file_give_the_same_variant(recipe: RecipeMaker, tmp_path: Path) -> None:
    surgeon.apply(recipe())
    saved = tmp_path / "out" / "regions" / "core.region.safetensors"
    data = yaml.safe_load(recipe().read_text())
    data["regions"] = {"core": {"file": str(saved)}}
    data["variants"] = {"cut": {"operations": [{"zero": "core"}]}}
    del data["verify"]
    (tmp_path / "second.yaml").write_text(yaml.safe_dump(data))
    surgeon.apply(tmp_path / "second.yaml", output=tmp_path / "second")
    one, two = (tmp_path / o / "variants" / "cut" / "model.safetensors" for o in ("out", "second"))
    assert one.read_bytes() == two.read_bytes()


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_wider_scopes_cut_as_many_entries_over_the_whole(scope: str, recipe: RecipeMaker, tmp_path: Path) -> None:
    report = surgeon.apply(recipe(**{"select: {top: 0.05}": f"select: {{top: 0.05, scope: {scope}}}"}))
    numel = report.regions["core"].numel
    layers = 2 if scope == "layer" else 1
    assert report.regions["core"].entries == layers * int(0.05 * (numel // layers))


def test_operations_happen_in_their_order_on_overlapping_regions(recipe: RecipeMaker, tmp_path: Path) -> None:
    surgeon.apply(recipe(**{"[{zero: core}]": "[{zero: core}, {zero: random}]"}))
    out = tmp_path / "out"
    both = Region.load(out / "regions" / "core.region.safetensors") | Region.load(
        out / "regions" / "random.region.safetensors"
    )
    cut = Checkpoint.open(out / "variants" / "cut")
    for name in both:
        assert not cut.array(name).reshape(-1)[both.indices(name)].any()
    assert json.loads((out / "variants" / "cut" / "surgeon.json").read_text())["entries"] == both.entries


def test_verify_sets_a_variant_beside_its_base(llama: Path, make_model: Callable[..., Path]) -> None:
    other = make_model("llama", seed=3)
    result = surgeon_forked(
        "verify", other, "--base", llama, "--languages", "en,zh", "--tokens", 40, "--window", 32, "--json"
    )
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert set(found) == {"base", "checkpoint"}
    assert set(found["base"]) == {"en", "zh"}
    table = surgeon_forked("verify", llama, "--languages", "en", "--tokens", 40, "--window", 32)
    assert "English" in table.stdout
    assert "bits/byte" in table.stdout


def test_help_and_the_small_commands(llama: Path, tmp_path: Path) -> None:
    assert "apply" in surgeon_forked("--help").stdout
    assert surgeon_forked("--version").stdout.startswith("surgeon ")
    assert "zero_core" in surgeon_forked("recipes").stdout
    assert surgeon_forked("recipes", "zero_core").stdout.startswith("# ")
    copied = surgeon_forked("recipes", "zero_core", "--copy", "--output", tmp_path).stdout.strip()
    assert Path(copied).read_text() == surgeon_forked("recipes", "zero_core").stdout
    assert surgeon_forked("recipes", "zero_cor").returncode == 2
    assert json.loads(surgeon_forked("schema").stdout)["properties"]["version"]
    found = json.loads(surgeon_forked("inspect", llama, "--json").stdout)
    assert (found["model_type"], found["layers"], found["roles"]["attn.o"]["tensors"]) == ("llama", 2, 2)
    assert surgeon_forked("apply", "nothing.yaml").returncode == 2


def test_light_commands_load_nothing_heavy() -> None:
    code = "import sys, surgeon.cli, surgeon.plan.plan, surgeon.region.region; "
    code += "print({'torch', 'transformers', 'datasets'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"


def test_public_names_are_no_submodules() -> None:
    import importlib.util

    for name in surgeon.__all__:
        assert getattr(surgeon, name)
        assert name == "__version__" or importlib.util.find_spec(f"surgeon.{name}") is None


def test_a_run_killed_at_any_stage_is_finished_by_the_same_command_without_scoring_again(
    recipe: RecipeMaker, tmp_path: Path
) -> None:
    path, out, cache = recipe(), tmp_path / "out", tmp_path / "cache"
    environment = {"SURGEON_CACHE": str(with_pictures(cache))}
    stages = {
        "first language scored": ("surgeon.scoring", "publish_sealed"),
        "all languages scored": ("surgeon.scoring", "publish_sealed"),  # the second: the first is there
        "variant staged": ("surgeon.run", "stage_variant"),
        "variant published": ("surgeon.api", "publish_variants"),
    }
    scored: dict[Path, int] = {}
    for count, (stage, (owner, name)) in enumerate(stages.items(), 1):
        strike = {"owner": owner, "name": name, "nth": 1, "after": True, "how": "SIGKILL"}
        (killed,) = run_forked([{"arguments": ["apply", str(path)], "strike": strike}], **environment)
        assert killed["code"] == -signal.SIGKILL, (stage, killed)
        variant = out / "variants" / "cut"
        assert not variant.exists() or Checkpoint.open(variant), stage
        assert not (out / "report.json").exists() or Report.load(out / "report.json"), stage
        known = {file: file.stat().st_mtime_ns for file in cache.glob("scores/*.safetensors")}
        assert len(known) == min(count, 2), stage
        assert {file: stamp for file, stamp in known.items() if file in scored} == scored, stage
        scored = known
    finished = surgeon_forked("apply", path, **environment)
    assert finished.returncode == 0, finished.stderr
    assert {file: file.stat().st_mtime_ns for file in cache.glob("scores/*.safetensors")} == scored
    done = [line for line in finished.stderr.splitlines() if " steps (" not in line]  # how long it was to take
    assert not any("score" in line for line in done)
    assert [item.name for item in (out / "variants").iterdir()] == ["cut"]
    assert Report.load(out / "report.json").variants["cut"].written


def test_restore_from_another_model_by_recipe(
    recipe: RecipeMaker, make_model: Callable[..., Path], tmp_path: Path, llama: Path
) -> None:
    other = make_model("llama", seed=21)
    surgeon.apply(recipe(**{"{zero: core}": f"{{restore: core, from: {other}}}"}))
    region = Region.load(tmp_path / "out" / "regions" / "core.region.safetensors")
    base, donor, found = (Checkpoint.open(path) for path in (llama, other, tmp_path / "out" / "variants" / "cut"))
    for name in region:
        mask = region.mask(name)
        assert (found.array(name) == (mask * donor.array(name) + ~mask * base.array(name))).all()
    marker = json.loads((tmp_path / "out" / "variants" / "cut" / "surgeon.json").read_text())
    assert set(marker["donors"]) == {str(other)}
    wrong = make_model("gpt2")
    with pytest.raises(surgeon.SurgeonError, match=r"recipe.yaml:\d+: .* cannot be taken from .* no such tensor"):
        surgeon.plan_recipe(recipe(**{"{zero: core}": f"{{restore: core, from: {wrong}}}"}))
