"""The recipe of a first cut: the shipped one, with what a model and a machine at hand ask for put into it."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.errors import InputError
from surgeon.plan.check import most_positions
from surgeon.plan.needs import Shape, shape_of
from surgeon.plan.planning import find_recipe
from surgeon.recipe.reading import load_recipe
from surgeon.text.languages import code_meant

RECIPE = "zero_core"
LANGUAGES = ("ar", "es", "ru", "zh", "ko", "vi")  # that the paper scores on
_SCORE = "regions.core.score"
_LENGTH = 256  # tokens of a sequence and of a window, as in the shipped recipes
# Of a first picture: each language has two windows, the fewest that give an interval.
_QUICK_LENGTH, _QUICK_SAMPLES, _QUICK_TOKENS, _QUICK_PROMPTS = 128, 2, 256, 1
# The smallest region that is more than chance, to a twentieth: equal steps of the logarithm, but for the last.
_DOSES = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.05)
_MOST_ROWS = 32  # of a batch: with so many the device is busy
_ROWS_ON_CPU = 4  # with which its processors are busy; more take memory alone
_SHARE_OF_FREE = 0.25  # of an accelerator's free memory, for a batch's activations; weights and sums take the rest


@dataclass(frozen=True)
class FirstCut:
    """What `surgeon cut` was asked for.

    `output` None is a folder named after the model. `tokens` are measured per language, `samples` are the sequences
    per language that are scored, `prompts` says how many of the recipe's are continued; None leaves each as the recipe
    has it, or as a `quick` picture needs it: that one measures the scored languages alone, with one random control.
    Without `measure` the core is cut out, and nothing is measured. With `dose` shares from 0.01 % to 5 % are cut, of
    the core, the largest and random entries, and all are measured and none written.
    """

    model: str
    top: float = 0.01
    languages: Sequence[str] = LANGUAGES
    output: str | Path | None = None
    tokens: int | None = None
    samples: int | None = None
    prompts: int | None = None
    quick: bool = False
    measure: bool = True
    dose: bool = False

    def overrides(self, checkpoint: Checkpoint, known: Sequence[str], rows: int) -> list[str]:
        """Return what to set in the shipped recipe.

        Args:
            checkpoint: the model, opened.
            known: languages of the corpus.
            rows: sequences at a time.

        Raises:
            InputError: a language is not in the corpus, or there is no share to cut.
        """
        self._check(known)
        values = self._settings(checkpoint, rows) | self._dosed(checkpoint) | self._amounts()
        if not self.measure:
            values = {key: value for key, value in values.items() if not key.startswith("verify.")} | {"verify": None}
        return [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in values.items()]

    def _check(self, known: Sequence[str]) -> None:
        for language in self.languages:
            if language not in known:
                raise InputError(f"--languages: no text for '{language}'{code_meant(language, known)}")
        if not 0 < self.top < 1:
            raise InputError(f"--top {self.top:g}: a share between 0 and 1, such as 0.01, or 1%, for one percent")
        if self.dose and not self.measure:
            raise InputError("--dose measures what every share does, so it does not go with --no-verify")

    def _settings(self, checkpoint: Checkpoint, rows: int) -> dict[str, Any]:
        """Return the model, where the output goes, and how the model is scored and measured."""
        last = self.model.removeprefix("builtin:").partition("@")[0].rstrip("/").rpartition("/")[2]
        plain = re.sub(r"[^A-Za-z0-9._-]+", "-", last).strip("-._")
        name = f"cut-{plain or 'model'}"
        wanted = _QUICK_LENGTH if self.quick else _LENGTH
        length = min(wanted, most_positions(checkpoint) or wanted)
        return {
            "name": name,
            "model": self.model,
            "output": str(self.output if self.output is not None else Path("out") / name),
            "regions.core.select.top": float(self.top),
            f"{_SCORE}.languages": list(dict.fromkeys(self.languages)),
            f"{_SCORE}.sequence_length": length,
            f"{_SCORE}.batch_size": rows,
            "verify.window": length,
            "verify.batch_size": rows,
            "verify.expect": [],
        }

    def _dosed(self, checkpoint: Checkpoint) -> dict[str, Any]:
        """Return a sweep over shares, if one is asked for, in place of the variants and prompts."""
        if not self.dose:
            return {}
        shape = shape_of(checkpoint)
        doses = [share for share in _DOSES if share * shape.hidden * shape.wide >= 1]  # else it selects nothing
        region = {"set": "operations.0.zero", "to": ["core", "largest", "random"]}
        sweep = {"region": region, "share": {"set": "regions.core.select.top", "to": doses}}
        variants = {"dose": {"operations": [{"zero": "core"}], "sweep": sweep}}
        return {"variants": variants, "verify.continued_by": None, "verify.prompts": []}

    def _amounts(self) -> dict[str, Any]:
        """Return how much text, and how many variants, languages and prompts; of all of them less if it is `quick`."""
        values: dict[str, Any] = {}
        if self.quick:
            values["verify.languages"] = list(dict.fromkeys(self.languages))
        if self.quick and not self.dose:
            values["variants.random-zeroed"] = {"operations": [{"zero": "random"}], "write": False}
        tokens = self.tokens or (_QUICK_TOKENS if self.quick else None)
        samples = self.samples or (_QUICK_SAMPLES if self.quick else None)
        prompts = _QUICK_PROMPTS if self.quick and not self.dose and self.prompts is None else self.prompts
        if samples is not None:
            values[f"{_SCORE}.samples"] = samples
        if tokens is not None:
            values["verify.tokens"] = tokens
        if prompts is not None:
            values["verify.prompts"] = _first_prompts(prompts)
        return values


def _first_prompts(count: int) -> list[str]:
    verify = load_recipe(find_recipe(RECIPE)).recipe.verify
    known = verify.prompts if verify is not None else []
    if count > len(known):
        raise InputError(
            f"--prompts {count}: there are {len(known)}; give texts of your own with --set 'verify.prompts=[...]'"
        )
    return known[:count]


def rows_at_a_time(checkpoint: Checkpoint, device: str) -> int:
    """Return how many sequences to run at a time: on an accelerator as many as its free memory has room for."""
    if not device.startswith("cuda"):
        return _ROWS_ON_CPU
    import torch

    return rows_within(shape_of(checkpoint), int(torch.cuda.mem_get_info(device)[0] * _SHARE_OF_FREE))


def rows_within(shape: Shape, free: int) -> int:
    """Return the largest power of two of sequences whose activations in a layer, both ways, fit into so many bytes."""
    row, rows = shape.activations(_LENGTH, shape.layers if shape.whole else 1), _MOST_ROWS
    while rows > 1 and rows * row > free:
        rows //= 2
    return rows
