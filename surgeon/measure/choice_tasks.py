"""The questions of `choice` in the task format of lm-evaluation-harness, so that others can ask them of any model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import yaml

from surgeon.inside import replacing
from surgeon.text.choices import questions
from surgeon.text.corpora import Corpus

PREFIX = "surgeon_choice"


def write_choice_tasks(folder: Path, corpus: Corpus, languages: Sequence[str], items: int) -> list[Path]:
    """Write a task `surgeon_choice_LANGUAGE` for each language, and the group of all; data alone, no code.

    The harness reads data by their full path, so that the folder stays where it is, or is written anew elsewhere.
    """
    folder.mkdir(parents=True, exist_ok=True)
    folder, files = folder.resolve(), []
    for language in languages:
        rows = [
            {"beginning": item.beginning, "ends": list(item.ends), "right": item.right, "paragraph": item.paragraph}
            for item in questions(corpus.text(language).evaluate, language, items)
        ]
        data = folder / f"{language}.jsonl"
        task = {
            "task": f"{PREFIX}_{language}",
            "tag": PREFIX,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(data)}},
            "test_split": "test",
            "output_type": "multiple_choice",
            "doc_to_text": "{{beginning}}",
            "doc_to_choice": "{{ends}}",
            "doc_to_target": "right",
            "target_delimiter": "",
            "metric_list": [
                {"metric": name, "aggregation": "mean", "higher_is_better": True} for name in ("acc", "acc_norm")
            ],
            "metadata": {"version": 1.0},
        }
        for path, text in (
            (data, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)),
            (folder / f"{PREFIX}_{language}.yaml", yaml.safe_dump(task, sort_keys=False, allow_unicode=True)),
        ):
            with replacing(path) as part:
                part.write_text(text, encoding="utf-8")
            files.append(path)
    return files
