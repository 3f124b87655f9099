"""Folders of tiny tasks, for the tests of what the harness does with them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

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
