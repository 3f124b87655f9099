"""The files that make weights a usable model, and nothing else: config, tokenizer, templates, code, licence.

Known by name, since whatever else lies in a source's folder may hold the very weights that were cut, in some format
or other, or nothing that its owner meant to publish.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path

from surgeon.checkpoint.checkpoint import INDEX_NAME, Checkpoint
from surgeon.freeze.bundle import FOLDER as FREEZE_FOLDER
from surgeon.write.marker import MARKER
from surgeon.write.shards import Copied, copy_small

_NAMES = (
    "config.json", "generation_config.json", "preprocessor_config.json", "processor_config.json",
    "image_processor_config.json", "video_preprocessor_config.json", INDEX_NAME, "tekken.json", "normalizer.json",
    "chat_template*.json", "*.jinja", "*.py", "*.tiktoken", "*.bpe", "*.spm", "*.model", "*.model.v[0-9]*",
    "LICENSE*", "LICENCE*", "COPYING*", "NOTICE*", "USE_POLICY*",
)  # fmt: skip
_TEXTS = (".json", ".txt", ".jsonl", ".model", ".vocab")  # in which tokenizers are kept
_TOKENIZERS = ("tokenizer", "vocab", "merges", "special_tokens", "added_tokens", "sentencepiece", "spiece")
_SENTENCEPIECE = b"\n"  # a serialised model begins with its first piece; pickles, archives and tensors do not
# What surgeon adds to a variant beside its marker and card, at once or when it is pushed.
_OWN = ("figures", "regions", "recipe.yaml", "manifest.json")


def companions(checkpoint: Checkpoint) -> tuple[list[Path], list[Path]]:
    """Return the companion files, relative to the source's folder, and those left out as links that lead out of it."""
    root = checkpoint.folder
    kept: list[Path] = []
    leading_out: list[Path] = []
    if checkpoint.source.path.is_file():
        return [], []
    for path in sorted(root.rglob("*")):
        relative = path.relative_to(root)
        hidden = any(part.startswith(".") for part in relative.parts)
        if hidden or not _is_companion(relative.name) or relative.name == MARKER or not path.is_file():
            continue
        if relative.parts[0] == FREEZE_FOLDER:  # it speaks of the source's weights
            continue
        if relative.parts[0] in _OWN and (root / MARKER).is_file():  # so do these, if the source is a variant itself
            continue
        if not _stays_inside(path, root):
            leading_out.append(relative)
        elif ".model" not in path.suffixes or _is_sentencepiece(path):
            kept.append(relative)
    return kept, leading_out


def _is_companion(name: str) -> bool:
    if any(fnmatchcase(name, pattern) for pattern in _NAMES):
        return True
    return name.startswith(_TOKENIZERS) and Path(name).suffix in _TEXTS and not name.endswith(".index.json")


def _is_sentencepiece(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(_SENTENCEPIECE)) == _SENTENCEPIECE


def _stays_inside(path: Path, root: Path) -> bool:
    """True if what a path leads to lies in the folder, or where the Hub's cache keeps the content of its files."""
    real, home = path.resolve(), root.resolve()
    if home in real.parents:
        return True
    blobs = home.parent.parent / "blobs"
    return home.parent.name == "snapshots" and real.parent == blobs


def copy_companions(checkpoint: Checkpoint, target: Path) -> dict[str, Copied]:
    """Copy the companion files; returns what was copied, by path in the variant."""
    copied = {}
    for relative in companions(checkpoint)[0]:
        copied[relative.as_posix()] = copy_small(checkpoint.folder / relative, target / relative)
    return copied
