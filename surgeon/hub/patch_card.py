"""The card of a patch on the Hub: what it changes, of which model, and how it is used."""

from __future__ import annotations

import re

from surgeon.checkpoint.sources import builtin_names
from surgeon.errors import InputError
from surgeon.region.patch import Patch
from surgeon.report.card import base_model
from surgeon.report.markup import markdown, markdown_code, quoted, yaml_text
from surgeon.report.words import count, percent, size

_REVISION = re.compile(r"[A-Za-z0-9][\w./-]{0,100}", re.ASCII)


def patch_card(patch: Patch, address: str) -> str:
    """Return the card of a patch that is sent to `address`.

    Raises:
        InputError: its base is not one that others have.
    """
    made, file = patch.region.metadata, patch.path.name
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
