"""The files that make weights a usable model, and nothing else: config, tokenizer, templates, code, licence.

Known by name, and by where transformers looks for them: whatever else lies in a source's folder may hold the very
weights that were cut, in some format or other, a trainer's state, or what its owner never meant to publish. What is
left out is told, file by file, each with the reason.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from surgeon import inside
from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.checkpoint.plain_json import NotPlain, read_object
from surgeon.checkpoint.quantized import plain_companions
from surgeon.checkpoint.remote import RemoteFile
from surgeon.checkpoint.weight_files import INDEX_NAME, SINGLE_NAME, index_bytes
from surgeon.errors import CheckpointError

_NAMES = (
    "config.json", "hf_quant_config.json",
    "generation_config.json", "preprocessor_config.json", "processor_config.json",
    "image_processor_config.json", "video_preprocessor_config.json", "audio_tokenizer_config.json",
    "chat_template*.json", "*.jinja", "LICENSE*", "LICENCE*", "License*", "COPYING*", "NOTICE*", "USE_POLICY*",
)  # fmt: skip
_VOCABULARIES = (
    "tekken.json", "normalizer.json", "*.tiktoken", "*.bpe", "*.spm", "*.model", "*.model.v[0-9]*", "bpe.codes",
    "byte_maps.json", "dict.txt", "emoji.json", "entity_vocab.json", "prophetnet.tokenizer", "target_vocab.json",
    "word_pronunciation.json", "word_shape.json",
)  # fmt: skip
_TEXTS = (".json", ".txt", ".jsonl", ".model", ".vocab")  # in which tokenizers are kept
_TOKENIZERS = ("tokenizer", "vocab", "merges", "special_tokens", "added_tokens", "sentencepiece", "spiece")
# Folders in which transformers looks, and what it takes there.
_FOLDERS = {"additional_chat_templates": ("*.jinja",), "custom_generate": ("*.py", "requirements.txt")}
_QUANTIZERS = "hf_quant_config.json"  # speaks of codes alone
# Without these a model does not load, or has no tokenizer.
_NEEDED = frozenset({
    "config.json", "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt",
    "merges.txt",
})  # fmt: skip
_SENTENCEPIECE = b"\n"  # a serialised model begins with its first piece; pickles, archives and tensors do not
_TIKTOKEN = re.compile(rb"[A-Za-z0-9+/]+={0,2} \d+\r?\n")  # a token in base64, and its rank
# What surgeon puts into a variant, at once or when it is pushed; a variant of a variant gets its own.
_MARKER, _CARD, _FREEZE = "surgeon.json", "README.md", "freeze"
_OWN = ("figures", "regions", "recipe.yaml", "manifest.json", ".eval_results", _MARKER)
# Configs that may name classes by `auto_map`.
_NAMING = (
    "config.json", "tokenizer_config.json", "processor_config.json", "preprocessor_config.json",
    "image_processor_config.json", "video_preprocessor_config.json", "generation_config.json",
)  # fmt: skip
_LONGEST = 1 << 22  # bytes of a file that is read; code by hand has a tenth of it
_CLASS = re.compile(r"(?P<module>[\w/-]+)\.\w+", re.ASCII)  # one of another repository has `--` before its name
_RELATIVE = re.compile(r"^\s*(?:from\s+\.([\w.]+)\s+import\b|import\s+\.([\w.]+)\s*$)", re.ASCII | re.MULTILINE)
_MOST_CODE = 200  # files, more than any model brings


@dataclass(frozen=True)
class Companions:
    """What travels with the weights, relative to the source's folder, and why what else lies there does not.

    `added` are files that the source lacks and a variant needs, with their content.
    """

    files: tuple[Path, ...]
    left_out: Mapping[str, str]
    added: Mapping[str, bytes]

    @property
    def notes(self) -> list[str]:
        """Lines that say what is left out, one for each reason."""
        reasons: dict[str, list[str]] = {}
        for name, reason in self.left_out.items():
            reasons.setdefault(reason, []).append(name)
        return [f"left out of variants: {', '.join(names)} ({reason})" for reason, names in reasons.items()]


def companions(checkpoint: Checkpoint) -> Companions:
    """Sort the files beside the weights into what travels and what does not; of a file, those of its folder."""
    root, code = checkpoint.folder, own_code(checkpoint.folder)
    taken = {header.path.name for header in checkpoint.headers}
    homes = {header.path.resolve().parent for header in checkpoint.headers if not isinstance(header.path, RemoteFile)}
    own = _OWN if (root / _MARKER).is_file() else ()
    files: list[Path] = []
    left_out: dict[str, str] = dict(checkpoint.left_out)
    for relative in _beside(checkpoint, code):
        name = relative.as_posix()
        if name in taken or name in left_out or name in (_CARD, _MARKER) or relative.parts[0] in own:
            continue
        if name.startswith(".") and not name.startswith("._"):
            continue
        reason = _obstacle(checkpoint, relative, code, homes)
        if reason is None:
            files.append(relative)
        else:
            left_out[name + ("/" if (root / relative).is_dir() else "")] = reason
    added = {}
    if checkpoint.written_plain:
        added = plain_companions(checkpoint)
        files = [path for path in files if path.as_posix() not in (*added, _QUANTIZERS)]
    elif not checkpoint.index and taken != {SINGLE_NAME} and checkpoint.config.get("transformers_weights") not in taken:
        added[INDEX_NAME] = index_bytes({header.path.name: header.tensors.values() for header in checkpoint.headers})
    return Companions(tuple(files), {} if checkpoint.source.path.is_file() else left_out, added)


def _beside(checkpoint: Checkpoint, code: frozenset[Path]) -> list[Path]:
    """Return what lies in the source's folder, on the Hub only too, and the files in some folders, relative to it."""
    root = checkpoint.folder
    if not root.is_dir():
        return sorted(code)
    names = {*(path.name for path in root.iterdir()), *checkpoint.source.remote}
    folders = {*_FOLDERS, *(path.parts[0] for path in code if len(path.parts) > 1)}
    entered = {name for name in folders if inside.is_folder(root / name)}
    files = {path.relative_to(root) for name in entered for path in (root / name).iterdir() if path.is_file()}
    return sorted({*map(Path, names - entered), *files, *code})


def _obstacle(checkpoint: Checkpoint, relative: Path, code: frozenset[Path], homes: Iterable[Path]) -> str | None:
    """Return why a file does not travel; None if it does."""
    name, path = relative.name, checkpoint.folder / relative
    if name.startswith("._"):
        return "notes that macOS keeps beside files"
    if path.is_dir():
        speaks = relative.parts[0] == _FREEZE
        return "it speaks of the source's weights" if speaks else "a folder in which transformers looks for nothing"
    if relative.suffix == ".py" and relative.parts[0] not in _FOLDERS and relative not in code:
        return "code in which the configs name no class"
    if relative not in code and not _is_companion(checkpoint, relative):
        return "nothing that transformers loads"
    if relative.as_posix() in checkpoint.source.remote:
        return None
    if not path.is_file():
        return "a link that leads nowhere, or no plain file"
    if not _stays_inside(path, checkpoint.folder, homes):
        return "a link that leads out of the folder"
    return "no vocabulary, by its first bytes" if ".model" in path.suffixes and not vocabulary_kind(path) else None


def _is_companion(checkpoint: Checkpoint, relative: Path) -> bool:
    name = relative.name
    if len(relative.parts) > 1:
        return any(fnmatchcase(name, pattern) for pattern in _FOLDERS.get(relative.parts[0], ()))
    is_index = checkpoint.index is not None and name == checkpoint.index.name
    return is_index or any(fnmatchcase(name, pattern) for pattern in _NAMES) or is_tokenizers(name)


def is_tokenizers(name: str) -> bool:
    """True for the name of a file in which tokenizers are kept."""
    if name.startswith(_TOKENIZERS) and Path(name).suffix in _TEXTS and not name.endswith(".index.json"):
        return True
    return any(fnmatchcase(name, pattern) for pattern in _VOCABULARIES)


def vocabulary_kind(path: Path) -> str | None:
    """Return `sentencepiece` or `tiktoken` for what these write, by its first bytes; None for anything else."""
    with path.open("rb") as file:
        start = file.read(1 << 12)
    return "sentencepiece" if start.startswith(_SENTENCEPIECE) else "tiktoken" if _TIKTOKEN.match(start) else None


def _stays_inside(path: Path, root: Path, homes: Iterable[Path]) -> bool:
    """True if what a path leads to lies in the folder, or where its weights lie: in a store of models, the Hub's cache.

    A link to anywhere else may lead to what was never meant to be published.
    """
    real, home = path.resolve(), root.resolve()
    if home in real.parents or real.parent in homes:
        return True
    blobs = home.parent.parent / "blobs"
    return home.parent.name == "snapshots" and real.parent == blobs


def check_companions(checkpoint: Checkpoint) -> Companions:
    """Return the companions of a checkpoint whose variants would load.

    Raises:
        CheckpointError: they would not, since a file that they need is a link that is not followed.
    """
    beside = companions(checkpoint)
    lost = sorted(name for name in beside.left_out if name in _NEEDED)
    if lost:
        raise CheckpointError(
            f"{checkpoint.folder / lost[0]}: {beside.left_out[lost[0]]}, so it is not copied, and without it a variant "
            "would not load; put the file itself there"
        )
    return beside


def own_code(folder: Path) -> frozenset[Path]:
    """Return the Python files, relative to the folder, in which its configs name classes, with what these import.

    Found as transformers finds them when it is told to trust them; scripts are none. Nothing here is imported or run.
    """
    waiting = [Path(f"{module}.py") for name in _NAMING for module in _modules(folder / name)]
    code: set[Path] = set()
    while waiting and len(code) < _MOST_CODE:
        path = waiting.pop()
        if path in code or path.is_absolute() or ".." in path.parts or not (folder / path).is_file():
            continue
        code.add(path)
        waiting += [path.parent / f"{name.replace('.', '/')}.py" for name in _imports(folder / path)]
    return frozenset(code)


def _modules(config: Path) -> Iterator[str]:
    if not config.is_file():
        return
    try:
        yield from _named(read_object(config, _LONGEST, unique=False))
    except (NotPlain, OSError):  # said where the file is read for what it means
        return


def _named(value: Any) -> Iterator[str]:
    """Yield the modules that `auto_map` names, at whatever depth it stands."""
    for key, inner in value.items() if isinstance(value, dict) else ():
        yield from _of_map(inner) if key == "auto_map" else _named(inner)


def _of_map(value: Any) -> Iterator[str]:
    """Yield the modules of classes: in texts, or in lists of a slow and a fast tokenizer."""
    if isinstance(value, str) and "--" not in value:
        match = _CLASS.fullmatch(value)
        if match:
            yield match["module"]
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _of_map(inner)


def _imports(path: Path) -> Iterator[str]:
    try:
        with path.open("rb") as file:
            text = file.read(_LONGEST).decode("utf-8", "replace")
    except OSError:
        return
    for match in _RELATIVE.finditer(text):
        yield match[1] or match[2]
