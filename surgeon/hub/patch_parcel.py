"""What a push of a patch sends: the one file, checked, with a card that says what it changes and how it is used.

README.md                the card
NAME.patch.safetensors   the patch
recipe.yaml              the recipe of the run that made it
manifest.json            that run's manifest, of which only the patch is left as an output
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml

from surgeon import inside
from surgeon.checkpoint.address import recipe_without_paths
from surgeon.checkpoint.hashing import file_hash
from surgeon.checkpoint.sources import builtin_names
from surgeon.errors import CheckpointError, InputError, RecipeError
from surgeon.hub.parcel import Item, Parcel, text_item
from surgeon.recipe.plain_yaml import plain, read_yaml
from surgeon.region.patch import Patch, is_patch_file
from surgeon.report.card import base_model
from surgeon.report.markup import markdown, markdown_code, quoted, yaml_text
from surgeon.report.published import published_manifest
from surgeon.report.words import count, percent, size
from surgeon.write.marker import CARD, MANIFEST, RECIPE, VARIANTS, outputs_of, read_own, read_own_text

ENDING = ".patch.safetensors"
_REVISION = re.compile(r"[A-Za-z0-9][\w./-]{0,100}", re.ASCII)


def is_patch(path: Path) -> bool:
    """True for a patch file, which is pushed alone."""
    return is_patch_file(path)


def pack_patch(path: Path, address: str) -> Parcel:
    """Check a patch against the manifest of the run that wrote it, and collect what is sent to `address`.

    Raises:
        InputError: its base is not one that others have, or its name is another.
        CheckpointError: no manifest tells of it, or it is not the file that was written.
    """
    patch, run = Patch.load(path), path.resolve().parent.parent
    if not path.name.endswith(ENDING):
        raise InputError(f"{path}: name it NAME{ENDING}, so others see what it is")
    manifest = read_own(run / MANIFEST)
    expected = outputs_of(manifest).get(f"{VARIANTS}/{path.name}")
    if expected is None:
        raise CheckpointError(
            f"{path}: no {MANIFEST} of the run that wrote it; push it from where `surgeon apply` wrote it, such as "
            f"out/NAME/{VARIANTS}/VARIANT{ENDING}"
        )
    digest = file_hash(path)
    if digest != expected:
        raise CheckpointError(f"{path}: not the file that was written; run `surgeon apply` again")
    told = {**published_manifest(manifest), "outputs": {path.name: digest}}
    if not inside.is_plain_file(run, RECIPE):
        raise CheckpointError(f"{run / RECIPE}: no plain file there; run `surgeon apply` again")
    recipe = _recipe(run / RECIPE)
    card = _card(patch, path.name, address)
    items = [
        Item(path.name, path, path.stat().st_size, digest),
        text_item(RECIPE, recipe),
        text_item(MANIFEST, json.dumps(told, indent=2, ensure_ascii=False) + "\n"),
        text_item(CARD, card),
    ]
    return Parcel(path, tuple(sorted(items, key=lambda item: item.path)), card, None)


def _recipe(path: Path) -> str:
    """Return a run's recipe as it is sent: without the folders of this machine."""
    text = read_own_text(path, "the recipe of the run")
    try:
        data = plain(read_yaml(text, lambda line: f"{path}:{line}")[0])
    except RecipeError as error:
        raise CheckpointError(f"{error}; run `surgeon apply` again") from None
    told = recipe_without_paths(data if isinstance(data, dict) else {})
    return yaml.safe_dump(told, sort_keys=False, allow_unicode=True)


def _card(patch: Patch, file: str, address: str) -> str:
    made: dict[str, Any] = patch.region.metadata
    source, revision = str(made.get("model", "the base")), made.get("revision")
    if base_model(source) is None and source not in {f"builtin:{name}" for name in builtin_names()}:
        raise InputError(f"{patch.path}: was made for {source}, which others do not have: nobody could use it")
    if revision is not None and not (isinstance(revision, str) and _REVISION.fullmatch(revision)):
        raise InputError(f"{patch.path}: says that it was made for the revision {str(revision)[:100]!r}, which is none")
    entries = sum(tensor.entries for tensor in patch.tensors.values())
    share = entries / max(patch.region.numel, 1)
    pinned = f"hf://{base_model(source)}@{revision}" if revision and base_model(source) else source
    vllm = f"surgeon.region.vllm.weight_patches({quoted(file)})"
    return f"""---
{_front_matter(source)}
---

# {markdown(str(made.get("recipe", "surgery")))}: {markdown(str(made.get("variant", file)))}

> **This patch damages a model on purpose.** It is meant for research on what its parameters do, not for use.

{markdown_code(file)} ({size(patch.path.stat().st_size)}) holds {entries:,} new values, bit for bit, of
{count(len(patch.tensors), "tensor")} of {markdown_code(pinned)}: {percent(share)} of their entries. It names the
SHA-256 of every tensor it was made for, and is refused on any other.

## How to use it

In a recipe of surgeon, which writes the patched checkpoint:

```yaml
model: {yaml_text(pinned)}
regions:
  changed: {{file: {yaml_text(f"{address}/{file}")}}}
variants:
  patched: {{operations: [{{restore: changed, from: {yaml_text(f"{address}/{file}")}}}]}}
```

In a running vLLM, whose patches have the same fields: {markdown_code(vllm)}.

`recipe.yaml` is the recipe that made it, `manifest.json` the versions and hashes.
"""


def _front_matter(source: str) -> str:
    from huggingface_hub import ModelCardData

    base = base_model(source)
    relation = "adapter" if base else None  # of the Hub's relations the one that means less than a whole model
    data = ModelCardData(base_model=base, base_model_relation=relation, tags=["model-surgery", "surgeon", "patch"])
    return data.to_yaml()
