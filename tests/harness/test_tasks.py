"""Tasks of lm-evaluation-harness: figures are those of its own run of the written variant, to the last digit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import surgeon
from surgeon.errors import EnvironmentFailure, InputError
from surgeon.harness.running import load_tasks

pytest.importorskip("lm_eval")
pytestmark = pytest.mark.filterwarnings("ignore")  # of the harness and what it brings

_ROWS = [
    {
        "start": f"Everyone has the right to number {n}, and no one",
        "ends": ["shall", "may", "shall be", f"{n}"],
        "at": n % 4,
    }
    for n in range(8)
]
_TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
fewshot_split: test
output_type: {kind}
doc_to_text: "{{{{start}}}}"
doc_to_target: "{target}"
{more}
"""
_KINDS = {
    "tiny_choice": ("multiple_choice", "{{at}}", 'doc_to_choice: "{{ends}}"'),
    "tiny_ends": ("loglikelihood", " {{ends[0]}}", ""),
    "tiny_text": ("loglikelihood_rolling", "{{start}} {{ends[at]}} {{start}}", ""),
    "tiny_said": ("generate_until", " {{ends[0]}}", 'generation_kwargs: {until: ["\\n"], max_gen_toks: 6}'),
}  # fmt: skip


@pytest.fixture
def task_folder(tmp_path: Path) -> Callable[..., Path]:
    """`task_folder("tiny_choice", ..., extra="metric_list: ...")` -> a folder with such tasks and their data."""

    def make(*names: str, extra: str = "") -> Path:
        folder = tmp_path / "tasks"
        folder.mkdir(exist_ok=True)
        data = folder / "rows.jsonl"
        data.write_text("".join(f"{json.dumps(row)}\n" for row in _ROWS), encoding="utf-8")
        for name in names:
            kind, target, more = _KINDS[name]
            text = _TASK.format(name=name, data=data, kind=kind, target=target, more=f"{more}\n{extra}")
            (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
        return folder

    return make


ALL = ("tiny_choice", "tiny_ends", "tiny_text", "tiny_said")
# What the harness calls a metric, and whether it is a plain mean, for which the figure is the same float.
EXACT = {"acc", "acc_norm", "perplexity", "word_perplexity", "byte_perplexity", "exact_match"}


def _recipe(folder: Path, model: Path, texts: dict[str, str], out: Path, **keys: Any) -> Path:
    recipe = {
        "version": 1,
        "name": "tasks",
        "model": str(model),
        "corpus": texts,
        "regions": {"some": {"select": {"random": 0.2, "seed": 1}}},
        "variants": {"cut": {"operations": [{"zero": "some"}]}},
        "verify": {
            "tokens": 8,
            "window": 8,
            "divergence": False,
            "tasks": {"names": [f"{folder}/"], "limit": 6, **keys},
        },
        "output": str(out),
    }
    path = out.parent / "recipe.json"
    path.write_text(json.dumps(recipe), encoding="utf-8")
    return path


def _own_run(model: Path, folder: Path, fewshot: int) -> dict[str, Any]:
    """The harness's own command, from Python: its model for transformers, one text at a time."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(folder), include_defaults=False)
    found = simple_evaluate(
        model=HFLM(pretrained=str(model), dtype="float32", device="cpu"),
        tasks=list(ALL), num_fewshot=fewshot, limit=6, task_manager=manager, bootstrap_iters=0,
    )  # fmt: skip
    assert found is not None
    return dict(found)


def test_figures_are_those_of_the_harness(
    make_model: Any, texts: dict[str, str], tmp_path: Path, task_folder: Callable[..., Path]
) -> None:
    # BOS, and questions with two examples that are longer than the model's 64 positions, so that they are cut.
    model, folder = make_model("llama", bos=True, dtype="bfloat16"), task_folder(*ALL)
    report = surgeon.apply(
        _recipe(folder, model, texts, tmp_path / "out", fewshot=2), overrides=["verify.batch_size=3"]
    )
    found = report.measurements["tasks"].found
    compared = 0
    for name, checkpoint in {"base": model, "cut": tmp_path / "out/variants/cut"}.items():
        own = _own_run(checkpoint, folder, 2)
        for task, by_metric in own["results"].items():
            for key, value in by_metric.items():
                metric, comma, _ = key.partition(",")
                if comma and not metric.endswith("_stderr"):
                    figure = found[name][task][metric]
                    assert figure.value == (value if metric in EXACT else pytest.approx(value, rel=1e-15)), (task, key)
                    compared += 1
        samples = [json.loads(line) for line in (tmp_path / f"out/samples/tasks/{name}.jsonl").read_text().splitlines()]
        for task, logged in own["samples"].items():
            ours = [sample for sample in samples if sample["task"] == task]
            assert [one["doc_hash"] for one in ours] == [one["doc_hash"] for one in logged]
            assert [one["filtered_resps"] for one in ours] == json.loads(
                json.dumps([one["filtered_resps"] for one in logged])
            )
    assert compared == 2 * 8
    base, cut = found["base"]["tiny_ends"]["perplexity"], found["cut"]["tiny_ends"]["perplexity"]
    assert cut.change == pytest.approx(cut.value / base.value)
    assert (cut.low or 0) <= cut.change <= (cut.high or 0)


@pytest.mark.parametrize(
    ("extra", "word"),
    [
        ("process_docs: !function steal.run", "!function steal.run"),
        ("metric_list: [{metric: ./steal.py}]", "./steal.py"),
        ("metric_list: [{metric: acc, hf_evaluate: true}]", "hf_evaluate"),
        ("include: inner.yml", "!function steal.run"),
        ("fewshot_config: {sampler: !!python/name:os.system ''}", "python"),
        ("dataset_path: pandas", "pandas"),
    ],
)
def test_code_in_a_folder_of_tasks_does_not_run(
    extra: str, word: str, make_model: Any, texts: dict[str, str], tmp_path: Path, task_folder: Callable[..., Path]
) -> None:
    folder = task_folder("tiny_choice", extra=extra)
    (folder / "inner.yml").write_text("process_docs: !function steal.run\n", encoding="utf-8")
    (folder / "steal.py").write_text(f"open({str(tmp_path / 'stolen')!r}, 'w')\n", encoding="utf-8")
    with pytest.raises(InputError, match="the harness would run") as raised:
        surgeon.apply(_recipe(folder, make_model("llama"), texts, tmp_path / "out"))
    assert word in str(raised.value)
    assert not (tmp_path / "stolen").exists()


def test_a_template_reaches_no_python(
    llama: Path, texts: dict[str, str], tmp_path: Path, task_folder: Callable[..., Path]
) -> None:
    stolen = tmp_path / "stolen"
    escape = "{{ cycler.__init__.__globals__.os.system('touch " + str(stolen) + "') }}"
    folder = task_folder("tiny_choice", extra=f'description: "{escape}"\ndoc_to_text: "{escape}"')
    with pytest.raises(InputError, match="unsafe"):
        surgeon.apply(_recipe(folder, llama, texts, tmp_path / "out"))
    assert not stolen.exists()


def test_the_harness_asks_a_variant_that_was_never_written(
    make_model: Any,
    texts: dict[str, str],
    tmp_path: Path,
    task_folder: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import sys

    from surgeon.lm_eval import main

    folder = task_folder("tiny_choice", "tiny_text", "tiny_said")
    recipe = _recipe(folder, make_model("llama", bos=True), texts, tmp_path / "out")
    found = surgeon.apply(recipe, overrides=["variants.cut.write=false"]).measurements["tasks"].found["cut"]
    assert not (tmp_path / "out/variants").exists()
    command = [
        "lm_eval", "run", "--model", "surgeon", "--model_args", f"out={tmp_path / 'out'},variant=cut", "--limit", "6",
        "--include_path", str(folder), "--tasks", str(folder / "tiny_choice.yaml"), str(folder / "tiny_text.yaml"),
        str(folder / "tiny_said.yaml"), "--output_path", str(tmp_path / "own.json"),
    ]  # fmt: skip
    monkeypatch.setattr(sys, "argv", command)
    monkeypatch.setattr(
        "lm_eval.tasks.manager.TaskIndex.build", lambda self, paths: {}
    )  # thousands of tasks of its own
    main()
    own = json.loads(next(tmp_path.glob("own*.json")).read_text(encoding="utf-8"))["results"]
    for task in ("tiny_choice", "tiny_text", "tiny_said"):
        metrics = {key.partition(",")[0]: value for key, value in own[task].items() if key.endswith(",none")}
        for metric, figure in found[task].items():
            assert metrics[metric] == pytest.approx(figure.value, rel=1e-15)


def test_questions_that_cannot_be_had_from_the_hub_are_one_sentence(
    task_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise ConnectionError("Couldn't reach 'org/data' on the Hub")

    monkeypatch.setattr("datasets.load_dataset", unreachable)
    with pytest.raises(EnvironmentFailure, match=r"tiny_choice: their questions could not be had .* come from the Hub"):
        load_tasks([f"{task_folder('tiny_choice', extra='dataset_path: org/data')}/"], 4, None)


def test_what_cannot_be_asked_is_told_before_anything_is_written(
    llama: Path, texts: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match="no such folder of tasks"):
        surgeon.apply(_recipe(tmp_path / "nowhere", llama, texts, tmp_path / "out"))
    monkeypatch.setattr("surgeon.harness.running.find_spec", lambda name: None)
    with pytest.raises(EnvironmentFailure, match="pip install"):
        surgeon.apply(_recipe(tmp_path / "nowhere", llama, texts, tmp_path / "out"))
    assert not (tmp_path / "out").exists()
