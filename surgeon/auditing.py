"""What a derivative kept of its parent: both measured on the same paragraphs and beginnings, and judged by language."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from surgeon.anatomy.scope import senses
from surgeon.checkpoint.fingerprint import refuse_changed, tokenizer_hashes
from surgeon.errors import InputError, reason
from surgeon.measure.base import Pieces, Subject
from surgeon.measure.verdicts import Audit, verdicts
from surgeon.memory import require_room_for_torch
from surgeon.model.arithmetic import resolve_precision
from surgeon.model.results import Figures
from surgeon.model.workplace import Workplace
from surgeon.plan.check import open_models, usable_device
from surgeon.progress import Progress
from surgeon.recipe.schema import VerifySpec
from surgeon.report.words import text_alone
from surgeon.text.corpora import Corpus, builtin_corpus, given_corpus

if TYPE_CHECKING:
    from surgeon.measure.base import Measurement
    from surgeon.measure.paragraphs import Paragraphs
    from surgeon.model.layer_stack import Stack


def audit(
    model: str | Path,
    base: str | Path,
    *,
    corpus: Corpus,
    languages: Sequence[str] | None = None,
    paragraphs: int = 40,
    prompts: int = 4,
    new_tokens: int = 24,
    window: int = 256,
    device: str = "auto",
    progress: Progress | None = None,
) -> Audit:
    """Measure two checkpoints on the same texts and say, language by language, what the one kept of the other.

    The tokenizers may differ, since bits per byte are compared; where both models see the same tokens and choose among
    as many, it is also told how far their predictions are apart. Where py3langid is installed, both also go on from
    `prompts` beginnings per language, and it is told whether they stay in it; 0 leaves that out.

    Raises:
        SurgeonError: a checkpoint cannot be read or run, or the corpus lacks a language.
    """
    from surgeon.measure.paragraphs import BITS, Paragraphs

    progress, device = progress or Progress(), usable_device(device)
    chosen = list(dict.fromkeys(languages)) if languages is not None else corpus.languages
    kept = _language_kept(prompts, new_tokens, progress)
    opened = open_models((base, model), window, window, progress)
    require_room_for_torch()
    place = Workplace(device, os.cpu_count() or 1)
    stacks = [place.load(item, resolve_precision("auto")) for item in opened]
    rows, none = VerifySpec(window=window).batch_size, Pieces([], [])
    subjects = [
        Subject(stack.loaded.tokenizer, stack.loaded.model.config, corpus, chosen, window, rows, none)
        for stack in stacks
    ]
    found = _outputs(stacks, subjects, Paragraphs(paragraphs=paragraphs), progress)
    said = [Figures(), Figures()]
    if kept is not None:
        said = [_said(stack, subject, kept, progress) for stack, subject in zip(stacks, subjects, strict=True)]
    for item in opened:
        refuse_changed(item)
    bits = [{code: by_name[BITS] for code, by_name in one["paragraphs"].groups.items()} for one in found]
    stays = {
        code: (said[0].groups[code]["kept"], said[1].groups[code]["kept"])
        for code in said[0].groups
        if code in said[1].groups
    }
    apart = found[1]["divergence"].groups if "divergence" in found[1] else {}
    changes = verdicts(bits[0], bits[1], stays, said[1].remarks, apart)
    same = tokenizer_hashes(opened[0].folder) == tokenizer_hashes(opened[1].folder)
    names = {code: corpus.language(code).name for code in chosen}
    notes = [text_alone(senses(item)) for item in opened]
    return Audit(_shown(model), _shown(base), same, tuple(changes), names, tuple(dict.fromkeys(filter(None, notes))))


def _language_kept(prompts: int, new_tokens: int, progress: Progress) -> Measurement | None:
    """Return the measurement of the language that a model goes on in; None where nobody asks, or it cannot be told."""
    if not prompts:
        return None
    if find_spec("py3langid") is None:
        progress.note(
            "the language of continuations is not measured: that needs `pip install '.[language]'` in a checkout"
        )
        return None
    from surgeon.measure.language_kept import LanguageKept

    return LanguageKept(prompts=prompts, new_tokens=new_tokens)


def _outputs(
    stacks: Sequence[Stack], subjects: Sequence[Subject], bits: Paragraphs, progress: Progress
) -> list[dict[str, Figures]]:
    """Measure base and model by their outputs; what sees the same tokens in both is compared token by token, too."""
    from surgeon.measure.divergence import Divergence
    from surgeon.measure.measuring import Look, measure
    from surgeon.model.editing import Variant
    from surgeon.model.tokenizer import check_ids

    pieces = [bits.pieces(subject) for subject in subjects]
    for stack, looked_at in zip(stacks, pieces, strict=True):
        ids = [row for batch in looked_at.batches for row in batch.inputs.tolist()]
        check_ids(stack.loaded.model, stack.loaded.tokenizer, ids)
    base, model = stacks
    if _same_tokens(base, model, *pieces):
        looks = [
            Look(bits, pieces[0], frozenset(["base", "model"])),
            Look(Divergence(), pieces[0], frozenset(["model"])),
        ]
        found = measure(model, [Variant("model")], looks, progress, beside=base)
        return [found["base"], found["model"]]
    return [
        measure(stack, [Variant(label)], [Look(bits, looked_at, frozenset([label]))], progress)[label]
        for label, stack, looked_at in zip(("base", "model"), stacks, pieces, strict=True)
    ]


def _same_tokens(base: Stack, model: Stack, left: Pieces, right: Pieces) -> bool:
    """True if two models see the same tokens, and predict among the same ones."""
    import torch

    from surgeon.model.layer_stack import vocabulary

    return (
        vocabulary(base) == vocabulary(model)
        and base.loaded.tokenizer.get_vocab() == model.loaded.tokenizer.get_vocab()
        and len(left.batches) == len(right.batches)
        and all(torch.equal(a.inputs, b.inputs) for a, b in zip(left.batches, right.batches, strict=True))
    )


def _said(stack: Stack, subject: Subject, kept: Measurement, progress: Progress) -> Figures:
    """Return what a model goes on in."""
    from surgeon.measure.measuring import Look, measure
    from surgeon.model.editing import Variant

    look = Look(kept, kept.pieces(subject), frozenset(["model"]))
    return measure(stack, [Variant("model")], [look], progress)["model"][kept.kind]


def _shown(source: str | Path) -> str:
    return str(source).rstrip("/")


def texts_for(languages: Sequence[str] | None, files: Sequence[Path]) -> tuple[Corpus, list[str]]:
    """Return the shipped texts with files of further languages beside them, and the languages to audit.

    A file `CODE.txt` holds a paragraph a line and is audited as a whole; a folder stands for all such files in it.

    Raises:
        InputError: a file is missing or empty, or a language has no text.
    """
    shipped = builtin_corpus("udhr30")
    paths = [path for file in files for path in (sorted(file.glob("*.txt")) if file.is_dir() else [file])]
    given = {}
    for path in paths:
        try:
            given[path.stem] = [line for line in path.read_text("utf-8").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"--text {path}: {reason(error)}") from None
    corpus = given_corpus(given, shipped) if given else shipped
    chosen = list(shipped.languages if languages is None else languages)
    for code in chosen:
        corpus.text(code)
    return corpus, list(dict.fromkeys([*chosen, *given]))
