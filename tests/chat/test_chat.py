"""`surgeon chat`: the base and its variants answer the same prompt, each as its checkpoint would."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from rich.console import Console
from typer.testing import CliRunner

from surgeon.chat.speakers import open_output
from surgeon.cli import app
from surgeon.errors import InputError
from surgeon.views.terminal import SideBySide


def greedy(folder: Path, text: str, count: int) -> str:
    """The plain way: the model that transformers loads, and the likeliest token each time."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    start = len(ids)
    for _ in range(count):
        token = int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
        if token == tokenizer.eos_token_id:
            break
        ids.append(token)
    return str(tokenizer.decode(ids[start:]))


def test_each_answers_as_its_checkpoint_does(small_run: Path, llama: Path) -> None:
    speakers = open_output(small_run, new_tokens=8)
    found = speakers.answer("Alle Menschen")
    assert list(found) == speakers.names
    assert found["base"].continuation == greedy(llama, "Alle Menschen", 8)
    assert found["cut"].continuation == greedy(small_run / "variants" / "cut", "Alle Menschen", 8)
    assert found["base"] != found["cut"]
    assert speakers.answer("Alle Menschen") == found  # what was poked in was put back


def test_who_answers_can_be_chosen_also_of_what_was_only_measured(small_run: Path) -> None:
    assert "drawn-0" in open_output(small_run).names  # its region is that of `random`, which was saved
    assert open_output(small_run, ["halved"]).names == ["base", "halved"]
    with pytest.raises(InputError, match="no variant 'cutt'; did you mean 'cut'"):
        open_output(small_run, ["cutt"])
    with pytest.raises(InputError, match="no file of region 'random-1', which 'drawn-1' needs"):
        open_output(small_run, ["drawn-1"])


def test_another_model_under_the_same_name_does_not_answer(small_run: Path, llama: Path, tmp_path: Path) -> None:
    """The regions are those of the model that was measured."""
    shutil.copytree(small_run, tmp_path / "out")
    shutil.copytree(llama, tmp_path / "model")
    path = tmp_path / "out" / "recipe.yaml"
    path.write_text(path.read_text(encoding="utf-8").replace(str(llama), str(tmp_path / "model")), encoding="utf-8")
    assert open_output(tmp_path / "out", ["cut"]).names == ["base", "cut"]
    weights = tmp_path / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    with pytest.raises(InputError, match="not the weights that"):
        open_output(tmp_path / "out", ["cut"])


def test_a_region_that_was_exchanged_does_not_speak(small_run: Path, tmp_path: Path) -> None:
    shutil.copytree(small_run, tmp_path / "out")
    regions = tmp_path / "out" / "regions"
    shutil.copyfile(regions / "random.region.safetensors", regions / "core.region.safetensors")
    with pytest.raises(InputError, match="not the region that was measured"):
        open_output(tmp_path / "out", ["cut"])


def test_a_chat_template_is_used_if_there_is_one(small_run: Path, llama: Path, tmp_path: Path) -> None:
    shutil.copytree(small_run, tmp_path / "out")
    shutil.copytree(llama, tmp_path / "model")
    tokenizer = transformers.AutoTokenizer.from_pretrained(llama)
    tokenizer.chat_template = "{% for turn in messages %}[{{ turn.role }}]{{ turn.content }}{% endfor %}[answer]"
    tokenizer.save_pretrained(tmp_path / "model")
    path = tmp_path / "out" / "recipe.yaml"
    path.write_text(path.read_text(encoding="utf-8").replace(str(llama), str(tmp_path / "model")), encoding="utf-8")
    asked = open_output(tmp_path / "out", ["cut"], new_tokens=6).answer("ja?")["base"]
    assert asked.prompt == "ja?"
    assert asked.continuation == greedy(llama, "[user]ja?[answer]", 6)
    plain = open_output(tmp_path / "out", ["cut"], new_tokens=6, plain=True).answer("ja?")["base"]
    assert plain.continuation == greedy(llama, "ja?", 6)


def test_prompts_come_from_options_or_from_stdin(small_run: Path) -> None:
    arguments = ["chat", str(small_run), "--variant", "cut", "--new-tokens", "3"]
    options = CliRunner().invoke(app, [*arguments, "--prompt", "eins", "--prompt", "zwei"], catch_exceptions=False)
    lines = CliRunner().invoke(app, arguments, input="eins\n\nzwei\n", catch_exceptions=False)
    assert options.exit_code == lines.exit_code == 0
    assert options.stdout == lines.stdout
    assert options.stdout.count('"eins"') == options.stdout.count('"zwei"') == 1
    data = json.loads(CliRunner().invoke(app, [*arguments, "--prompt", "eins", "--json"]).stdout)
    assert [item["prompt"] for item in data] == ["eins"]
    assert list(data[0]["answers"]) == ["base", "cut"]
    nowhere = CliRunner().invoke(app, ["chat", "./nowhere", "--prompt", "eins"])
    assert "cannot be read" in str(nowhere.exception)


@pytest.mark.parametrize(("width", "beside"), [(100, True), (40, False)])
def test_answers_stand_beside_each_other_where_there_is_room(width: int, beside: bool) -> None:
    file = io.StringIO()
    said = {"base": ("links\x1b[2J", "length"), "cut": ("rechts", "end")}
    Console(file=file, width=width, color_system=None).print(SideBySide("wo?", said))  # type: ignore[arg-type]
    lines = file.getvalue().splitlines()
    assert lines[0].rstrip() == '"wo?"'
    assert any("base" in line and "cut" in line for line in lines) == beside
    assert "\x1b" not in file.getvalue()
    assert "(the end, says the model)" in " ".join(file.getvalue().split())
