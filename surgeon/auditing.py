"""What a derivative kept of its parent: both measured on the same paragraphs and beginnings, and judged by language."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.checkpoint.fingerprint import refuse_changed, tokenizer_hashes
from surgeon.checkpoint.remarks import remarks
from surgeon.errors import InputError, reason
from surgeon.measure.verdicts import Audit, verdicts
from surgeon.memory import require_room_for_torch
from surgeon.model.precision import resolve_precision
from surgeon.model.results import Figures
from surgeon.model.workplace import Workplace
from surgeon.plan.check import check_device, check_length, chosen_device
from surgeon.progress import Progress
from surgeon.recipe.schema import VerifySpec
from surgeon.text.corpora import Corpus, builtin_corpus, given_corpus

if TYPE_CHECKING:
    from surgeon.measure.base import Measurement


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

    The tokenizers may differ, since bits per byte are compared. Where py3langid is installed, both also go on from
    `prompts` beginnings per language, and it is told whether they stay in it; 0 leaves that out.

    Raises:
        SurgeonError: a checkpoint cannot be read or run, or the corpus lacks a language.
    """
    from surgeon.measure.paragraphs import BITS, Paragraphs

    progress, device = progress or Progress(), chosen_device(device)
    lacking = check_device(device)
    if lacking is not None:
        raise lacking
    chosen = list(dict.fromkeys(languages)) if languages is not None else corpus.languages
    looks: list[Measurement] = [Paragraphs(paragraphs=paragraphs)]
    if prompts and find_spec("py3langid") is not None:
        from surgeon.measure.language_kept import LanguageKept

        looks.append(LanguageKept(prompts=prompts, new_tokens=new_tokens))
    elif prompts:
        progress.note(
            "the language of continuations is not measured: that needs `pip install '.[language]'` in a checkout"
        )
    opened = [Checkpoint.open(source).downloaded() for source in (base, model)]
    for line in dict.fromkeys(line for item in opened for line in remarks(item)):
        progress.note(line)
    spec = VerifySpec(window=window)
    found = [
        _measured(label, item, corpus, chosen, looks, spec, device, progress)
        for label, item in zip(("base", "model"), opened, strict=True)
    ]
    bits = [{code: by_name[BITS] for code, by_name in one["paragraphs"].groups.items()} for one in found]
    said = [one["language_kept"] if "language_kept" in one else Figures() for one in found]
    stays = {
        code: (said[0].groups[code]["kept"], said[1].groups[code]["kept"])
        for code in said[0].groups
        if code in said[1].groups
    }
    changes = verdicts(bits[0], bits[1], stays, said[1].remarks)
    same = tokenizer_hashes(opened[0].folder) == tokenizer_hashes(opened[1].folder)
    names = {code: corpus.language(code).name for code in chosen}
    return Audit(_shown(model), _shown(base), same, tuple(changes), names)


def _shown(source: str | Path) -> str:
    return str(source).rstrip("/")


def _measured(
    label: str,
    checkpoint: Checkpoint,
    corpus: Corpus,
    languages: Sequence[str],
    looks: Sequence[Measurement],
    spec: VerifySpec,
    device: str,
    progress: Progress,
) -> dict[str, Figures]:
    require_room_for_torch()
    from surgeon.measure.base import Pieces, Subject
    from surgeon.measure.measuring import Look, measure
    from surgeon.model.editing import Variant
    from surgeon.model.vocabulary import check_ids

    too_long = check_length(checkpoint, spec.window)
    if too_long is not None:
        raise InputError(f"--window {spec.window}: {too_long}")
    stack = Workplace(device, os.cpu_count() or 1).load(checkpoint, resolve_precision("auto"))
    loaded = stack.loaded
    subject = Subject(loaded.tokenizer, loaded.model.config, corpus, languages, spec, Pieces([], []))
    made = [Look(item, item.pieces(subject), frozenset([label])) for item in looks]
    ids: list[Any] = [row for look in made for batch in look.pieces.batches for row in batch.inputs.tolist()]
    check_ids(loaded.model, loaded.tokenizer, ids)
    found = measure(stack, [Variant(label)], made, progress)[label]
    refuse_changed(checkpoint)
    return found


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
