"""The figures of a plan: what earlier runs measured of the very same, and the rest in one pass through the layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from surgeon.measure.intervals import LEVEL, RESAMPLES, SEED
from surgeon.measure.verification_cache import keep, kept_path, load_kept
from surgeon.model.precision import Precision, resolve_precision
from surgeon.model.results import CONTINUATIONS, Verification
from surgeon.recipe.schema import VerifySpec
from surgeon.report.measured import first_finding
from surgeon.run import Run
from surgeon.text.windows import new_tokens


def verify_variants(run: Run) -> tuple[Verification, dict[str, Any]]:
    """Measure the base and the variants, all in one pass through the layers; also says how it was measured.

    What an earlier run measured of the very same models, texts and settings is taken from there.
    """
    spec = run.plan.recipe.verify
    if spec is None:
        return Verification(), {}
    precision, names = resolve_precision("auto"), ["base", *run.plan.recipe.variants]
    paths = {name: _kept_paths(run, name, spec, precision) for name in names}
    found, missing = Verification(), dict[str, list[str]]()
    for name, by_kind in paths.items():
        for kind, path in by_kind.items():
            kept = load_kept(path, name, kind)
            if kept is None:
                missing.setdefault(name, []).append(kind)
            else:
                found = found.joined(kept)
    if missing:
        new = _measured(run, spec, precision, missing, found)
        for name, kinds in missing.items():
            for kind in kinds:
                keep(paths[name][kind], name, new, kind)
        found = found.joined(new)
    return found.ordered(names), _method(run, precision, spec)


def _measured(
    run: Run, spec: VerifySpec, precision: Precision, missing: Mapping[str, Sequence[str]], known: Verification
) -> Verification:
    """Measure what is missing, by model and kind; as soon as figures are there they are told, with those known."""
    from surgeon.measure.verification import verify
    from surgeon.model.editing import Variant

    plan, compares = run.plan, {item.kind for item in spec.measurements if item.compares}
    names = list(missing)
    if "base" not in missing and any(compares.intersection(kinds) for kinds in missing.values()):
        names = ["base", *names]  # its outputs are needed once more
    stack = run.stack(precision)
    variants = [
        Variant(name, plan.operations_of(name), run.regions_of(name), plain=plan.source_of(name).written_plain)
        for name in names
    ]

    def tell(new: Verification) -> None:
        run.progress.found(first_finding(known.joined(new).ordered(["base", *plan.recipe.variants]).measures))

    with run.timed("verify"):
        return verify(
            stack, variants, plan.corpus, plan.verify_languages, spec, run.progress, missing, tell, run.place.team
        )


def _kept_paths(run: Run, name: str, spec: VerifySpec, precision: Precision) -> dict[str, Path | None]:
    """Return where the figures of a model are kept, by kind: those that are told of it, and its continuations."""
    plan, operations = run.plan, run.plan.operations_of(name)
    donors = {donor: run.donors[donor] for item in operations for donor in item.donors}
    texts = {language: plan.corpus.text(language).evaluate_hash for language in plan.verify_languages}
    kinds = [item.kind for item in spec.measurements if name != "base" or not item.compares]
    kinds += [CONTINUATIONS] if spec.prompts and name in plan.talkers else []
    source, regions, place = plan.source_of(name), run.regions_of(name), run.place
    of_model = partial(kept_path, source, operations, regions, donors, texts, spec, precision, place.device, place.jobs)
    return {kind: of_model(kind) for kind in kinds}


def _method(run: Run, precision: Precision, spec: VerifySpec) -> dict[str, Any]:
    begun = run.token_counts.begun()
    return {
        "tokens": spec.tokens,
        "window": spec.window,
        "stride": new_tokens(begun, spec.window, spec.stride or spec.window),
        "bos": f"{begun} before every window" if begun else "none, since the tokenizer adds none",
        "precision": precision,
        "device": run.place.device,
        "interval": {"level": LEVEL, "resamples": RESAMPLES, "seed": SEED},
    }
