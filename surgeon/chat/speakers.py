"""Who answers: the base of a run and its variants, made in memory from the regions in the output folder."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from surgeon import inside
from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.checkpoint.fingerprint import content_hash, read_hash
from surgeon.errors import InputError, did_you_mean
from surgeon.memory import require_room_for_torch
from surgeon.model.arithmetic import resolve_precision
from surgeon.model.results import Continuation
from surgeon.progress import Progress
from surgeon.recipe.reading import load_recipe
from surgeon.recipe.schema import Recipe
from surgeon.region.region import Region
from surgeon.report.data import Report
from surgeon.report.story import tell
from surgeon.text.windows import tokenize
from surgeon.write.marker import MANIFEST, RECIPE, REGIONS, outputs_of, read_own

if TYPE_CHECKING:
    from surgeon.model.continuations import Prompt
    from surgeon.model.editing import Variant
    from surgeon.model.layer_stack import Stack


@dataclass(frozen=True, eq=False)
class Speakers:
    """A loaded model and the variants of it that answer, after the base; `templated` if prompts are turns of a chat."""

    stack: Stack
    variants: Mapping[str, Variant]
    new_tokens: int
    templated: bool

    @property
    def names(self) -> list[str]:
        """Who answers, in order."""
        return ["base", *self.variants]

    def answer(self, prompt: str, progress: Progress | None = None) -> dict[str, Continuation]:
        """Let each go on from a prompt, always with the likeliest token.

        Raises:
            InputError: the prompt gives no token, or is longer than the model has positions.
        """
        from surgeon.model.continuations import continue_prompts
        from surgeon.model.editing import Variant

        models, prompts = [Variant("base"), *self.variants.values()], [self._encoded(prompt)]
        answers = continue_prompts(self.stack, models, prompts, self.new_tokens, progress or Progress())
        return {name: of_model[0] for name, of_model in answers.items()}

    def _encoded(self, prompt: str) -> Prompt:
        from surgeon.model.continuations import encode_prompts, fitting_prompt

        if not self.templated:
            return encode_prompts(self.stack, [prompt], self.new_tokens)[0]
        tokenizer = self.stack.loaded.tokenizer
        turn = [{"role": "user", "content": prompt}]
        try:
            text = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
        except Exception as error:  # a template is a program of its own, which may end in anything
            said = next(iter(str(error).splitlines()), type(error).__name__)
            raise InputError(f"the model's chat template fails ({said}); --plain goes without it") from None
        return fitting_prompt(self.stack, prompt, tokenize(tokenizer, text).ids, self.new_tokens)


def open_output(
    folder: str | Path, chosen: Sequence[str] = (), *, device: str = "cpu", new_tokens: int = 40, plain: bool = False
) -> Speakers:
    """Load the model of an output folder, and find the variants that its regions can make.

    Args:
        folder: of `surgeon apply`.
        chosen: variants by name; if none is named, those of the report's first picture.
        device: where the model runs.
        new_tokens: of an answer, at most.
        plain: continue prompts as they are, even if the tokenizer has a template for chats.

    Raises:
        InputError: it is no output folder, a variant is not there, or the model is another one now.
        SurgeonError: the model cannot be loaded.
    """
    require_room_for_torch()
    from surgeon.model.layer_stack import make_stack
    from surgeon.model.model import load_model

    out = Path(os.path.expanduser(folder))
    report, recipe = Report.load(out), load_recipe(out / RECIPE).recipe
    variants = _variants(out, report, recipe, chosen)
    checkpoint = Checkpoint.open(recipe.model).downloaded()
    if report.model.content_sha256 not in (None, content_hash(checkpoint, 2)):
        raise InputError(f"{recipe.model}: not the weights that {out} was made from; run `surgeon apply` again")
    stack = make_stack(load_model(checkpoint, resolve_precision("auto"), device))
    templated = not plain and bool(getattr(stack.loaded.tokenizer, "chat_template", None))
    return Speakers(stack, variants, new_tokens, templated)


def _variants(out: Path, report: Report, recipe: Recipe, chosen: Sequence[str]) -> dict[str, Variant]:
    """Find the regions of variants; those that only sweeps have may be the same as one that was saved."""
    for name in chosen:
        if name not in recipe.variants:
            raise InputError(f"{out}: no variant '{name}'{did_you_mean(name, recipe.variants)}")
    from surgeon.model.editing import Variant

    wanted = chosen or [name for name in (tell(report).shown or recipe.variants) if name in recipe.variants]
    variants = {}
    written = outputs_of(read_own(out / MANIFEST))
    for name in wanted:
        operations = recipe.variants[name].operations
        files = {label: _file(out, recipe, label) for operation in operations for label in operation.regions}
        missing = [region for region, path in files.items() if path is None]
        if missing and chosen:
            raise InputError(f"{out}: no file of region '{missing[0]}', which '{name}' needs; name it in the recipe")
        if not missing:
            regions = {label: _as_written(path, written) for label, path in files.items() if path is not None}
            variants[name] = Variant(name, operations, regions, plain=recipe.variants[name].dequantized)
    return variants


def _as_written(path: Path, written: Mapping[str, str]) -> Region:
    if written.get(f"{REGIONS}/{path.name}") != read_hash(path):
        raise InputError(f"{path}: not the region that was measured; run `surgeon apply` again")
    return Region.load(path)


def _file(out: Path, recipe: Recipe, region: str) -> Path | None:
    same = [region, *(name for name, spec in recipe.regions.items() if spec == recipe.regions[region])]
    names = (f"{REGIONS}/{name}.region.safetensors" for name in same)
    return next((out / name for name in names if inside.is_plain_file(out, name)), None)
