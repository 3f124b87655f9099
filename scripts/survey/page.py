"""Writes docs/models.md from the results of a survey."""

# ruff: noqa: E501  (rows of tables in Markdown are one line each)

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from families import GROUPS, families
from judge import Found
from layouts import LAYOUTS

TARGET = Path(__file__).parent.parent.parent / "docs" / "models.md"

_HEAD = """\
# Models

<!-- Written by `make survey`; run that, do not change this page. -->

What surgeon does with every model type that transformers {version} lists for causal language models, for image and text to
text, and for sequence to sequence and speech; and with released layouts that `save_pretrained` does not write. {date}.

A script makes each type tiny and random. It plans, scores on two languages, cuts a tenth, measures, and compares with plain
transformers. It takes none of its expectations from surgeon.

{counts}

| word | means |
|---|---|
| right | loading, cut, region, perplexity and left out all hold |
| runs | by layer, or whole: the model then has to fit into memory ([scale.md](scale.md)) |
| loading | the variant loads as the model does, with no name missing or unexpected |
| cut | in each matrix of the layers exactly `int(fraction * numel)` entries became zero; no other byte of any file changed |
| region | the entries are those that autograd on the whole model chooses. The column gives shared entries as a share of all that either chose |
| perplexity | perplexities of model and variant are those of plain transformers. The column gives the largest relative difference |
| left out | `plan` names whatever of the layers was not cut |
| refused | exit code 2, and the message [below](#refused) |

Of a model that also takes images or sound, surgeon scores, cuts and measures the text decoder, on text alone. Its other
parts stay byte for byte as they were, and `plan`, `inspect`, the page and the model card say so.

A tiny model of each type shows that names, layers, experts and arithmetic are understood. It does not show what a
cut does to a trained model. For quantized weights see [formats.md](formats.md).
"""


def read(results: Path) -> dict[str, Found]:
    """Return the last result of each family."""
    lines = [json.loads(line) for line in results.read_text("utf-8").splitlines()]
    return {line["name"]: Found(**line) for line in lines}


def page(results: dict[str, Found], version: str, date: datetime.date) -> str:
    """Return the page."""
    groups = {group: [name for name, case in families().items() if case.group == group] for group in GROUPS}
    groups["Released layouts"] = list(LAYOUTS)
    found = {name: results[name] for names in groups.values() for name in names if name in results}
    parts = [_HEAD.format(version=version, date=f"{date:%d %B %Y}", counts=_counts(groups, found))]
    for title, names in groups.items():
        right = [found[name] for name in names if name in found and found[name].verdict == "right"]
        parts.append(f"## {title}\n\n" + _table(right))
    parts.append("## Refused\n\n" + _reasons(it for it in found.values() if it.verdict == "refused"))
    odd = [it for it in found.values() if it.verdict not in ("right", "refused")]
    if odd:
        parts.append("## Neither\n\n" + _reasons(odd))
    return "\n".join(parts)


_VERDICTS = {
    "right": "right", "refused": "refused", "partial": "part of the layers left out, and not named", "wrong": "wrong",
    "traceback": "ended in a traceback", "not judged": "no result", "not made": "could not be made tiny here",
}  # fmt: skip


def _counts(groups: dict[str, list[str]], found: dict[str, Found]) -> str:
    lines = [f"| | {' | '.join(title.lower() for title in groups)} |", f"|---|{'--:|' * len(groups)}"]
    for verdict, words in _VERDICTS.items():
        counts = [sum(name in found and found[name].verdict == verdict for name in names) for names in groups.values()]
        if any(counts):
            lines.append(f"| {words} | {' | '.join(str(count or '') for count in counts)} |")
    return "\n".join(lines)


_OUTER = {"embed", "head", "final_norm", "outside", "norm", "buffer"}


def _table(chosen: Sequence[Found]) -> str:
    lines = [
        "| type | runs | roles found in the layers, without norms | left out, as `plan` says | region | perplexity |",
        "|---|---|---|---|--:|--:|",
    ]
    for it in chosen:
        roles = " ".join(sorted(role for role in it.roles if role not in _OUTER))
        left = ", ".join(f"`{name}`" for name in it.left_out)
        region = "" if it.overlap is None else "1" if it.overlap == 1 else f"{it.overlap:.5f}"
        error = "" if it.perplexity_error is None else "0" if it.perplexity_error == 0 else f"{it.perplexity_error:.0e}"
        lines.append(f"| {it.name} | {'whole' if it.whole else 'by layer'} | {roles} | {left} | {region} | {error} |")
    return "\n".join(lines) + "\n"


def _reasons(chosen: Iterable[Found]) -> str:
    """Say why, each reason once, with those that it holds for."""
    grouped: dict[str, list[str]] = {}
    for it in chosen:
        text = it.message or "; ".join(it.wrong)
        text = re.sub(r" \(<class '[^']*'>\)", "", text.replace(f"'{it.name}'", "TYPE").replace(it.model, "CLASS"))
        text = re.sub(r"\b(layers|blocks|h)\.\d+\.", r"\1.N.", re.sub(r"\d+ such tensors?", "N such tensors", text))
        grouped.setdefault(_plain(f"{it.verdict}: {text}" if it.verdict != "refused" else text), []).append(it.name)
    lines = ["| types | message |", "|---|---|"]
    lines += [f"| {', '.join(names)} | {text} |" for text, names in sorted(grouped.items(), key=lambda x: -len(x[1]))]
    return "\n".join(lines) + "\n"


def _plain(text: str) -> str:
    short = re.sub(r"/\S*/(site-packages/|(?=surgeon/))", "", re.sub(r"[\s^]+", " ", text))
    short = f"{short[:300]} ..." if len(short) > 300 else short
    return re.sub(r"([|*<>_\[\]`])", r"\\\1", short)


def write(results: Path) -> Path:
    """Write the page from a file of results; returns where."""
    import transformers

    TARGET.write_text(page(read(results), transformers.__version__, datetime.date.today()), encoding="utf-8")
    return TARGET
