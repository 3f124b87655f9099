"""The model card of a written variant: what it is, what was cut, what that did, how to make it again."""

from __future__ import annotations

from typing import Any

import yaml

from surgeon.plan import Plan
from surgeon.region import Region


def model_card(plan: Plan, variant: str, regions: dict[str, Region]) -> str:
    """Return README.md of a variant. The figures are in the run's report, which is written after it."""
    spec = plan.variants[variant]
    source = plan.checkpoint.source
    front: dict[str, Any] = {"library_name": "transformers", "tags": ["surgeon", "model-surgery"]}
    if source.name.startswith("hf://") or source.revision is not None:
        front["base_model"] = source.name.removeprefix("hf://").partition("@")[0]
    rows = "\n".join(
        f"| {name} | {region.entries:,} | {region.numel:,} | {100 * region.density():.3g} % |"
        for name, region in regions.items()
    )
    operations = "\n".join(f"{i}. `{operation}`" for i, operation in enumerate(spec.operations, 1))
    if plan.recipe.variants[variant].operations:
        warning = (
            "**This model was changed on purpose and may be damaged.** It is meant for research on what its "
            "parameters do,\nnot for use."
        )
    else:
        warning = "The weights are those of the source, byte for byte."
    if plan.recipe.variants[variant].freeze is not None:
        warning += (
            "\n\nThe folder `freeze/` names entries that further training shall keep: "
            "`surgeon.freeze.freeze(model, THIS_REPOSITORY, optimizer)`."
        )
    return f"""---
{yaml.safe_dump(front, sort_keys=False, allow_unicode=True).strip()}
---

# {plan.recipe.name}: {variant}

{warning}

Made from `{source.name}`{f" at `{source.revision}`" if source.revision else ""} by
surgeon (the Python package `model-surgeon`), in these steps:

{operations}

| region | entries | of | share |
|---|---|---|---|
{rows}

All bytes of the weights that these steps do not touch are those of the source. `surgeon.json` in this folder says
which recipe made it; run `surgeon apply` on that recipe to make it again.
"""
