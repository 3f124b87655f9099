"""The figures of a plan: what earlier runs measured of the very same, and the rest in one pass through the layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from surgeon.measure.parts import Part
from surgeon.measure.uncertainty import LEVEL, RESAMPLES, SEED
from surgeon.measure.verification_cache import keep, kept_path, load_kept
from surgeon.model.arithmetic import Precision, resolve_precision
from surgeon.model.results import CONTINUATIONS, PERPLEXITY, Verification
from surgeon.operations.edits import Surgery
from surgeon.recipe.schema import VerifySpec
from surgeon.report.measured import first_finding
from surgeon.run import Run
from surgeon.text.windows import new_tokens


@dataclass(frozen=True)
class _Measured:
    """A model to be measured: the base, a variant, or a part of its cut."""

    run: Run
    variant: str
    part: Part | None = None

    @property
    def surgery(self) -> Surgery:
        """What is done to the source; regions are made when this is asked for."""
        plan, regions = self.run.plan, self.part.regions if self.part else self.run.regions_of(self.variant)
        return Surgery(plan.source_of(self.variant), plan.operations_of(self.variant), regions)

    def kinds(self, spec: VerifySpec) -> list[str]:
        """What is kept of it: figures by kind, and its continuations; of a part, perplexity alone."""
        if self.part is not None:
            return [PERPLEXITY]
        kinds = [item.kind for item in spec.measurements if self.variant != "base" or not item.compares]
        return [*kinds, CONTINUATIONS] if self.variant in self.run.plan.talkers else kinds


def verify_variants(run: Run) -> tuple[Verification, dict[str, Any]]:
    """Measure the base and the variants, all in one pass through the layers; also says how it was measured.

    What an earlier run measured of the very same models, texts and settings is taken from there.
    """
    spec = run.plan.recipe.verify
    if spec is None:
        return Verification(), {}
    precision = resolve_precision("auto")
    models = {name: _Measured(run, name) for name in ("base", *run.plan.recipe.variants)}
    models |= {part.name: _Measured(run, part.variant, part) for part in run.parts}
    paths = {name: _kept_paths(model, spec, precision) for name, model in models.items()}
    figures, missing = Verification(), dict[str, list[str]]()
    for name, by_kind in paths.items():
        for kind, path in by_kind.items():
            known = load_kept(path, name, kind)
            if known is None:
                missing.setdefault(name, []).append(kind)
            else:
                figures = figures.joined(known)
    if missing:
        new = _measured(run, models, spec, precision, missing, figures)
        for name, kinds in missing.items():
            for kind in kinds:
                keep(paths[name][kind], name, new, kind)
        figures = figures.joined(new)
    return figures.ordered(models), _method(run, precision, spec)


def _measured(
    run: Run,
    models: Mapping[str, _Measured],
    spec: VerifySpec,
    precision: Precision,
    missing: Mapping[str, Sequence[str]],
    known: Verification,
) -> Verification:
    """Measure what is missing, by model and kind; as soon as figures are there they are told, with those known."""
    from surgeon.measure.verification import verify
    from surgeon.model.editing import Variant

    compares = {item.kind for item in spec.measurements if item.compares}
    names = list(missing)
    if "base" not in missing and any(compares.intersection(kinds) for kinds in missing.values()):
        names = ["base", *names]  # its outputs are needed once more
    stack, team = run.stack(precision), run.place.team
    done = {name: models[name].surgery for name in names}
    variants = [
        Variant(name, one.operations, one.regions, plain=one.checkpoint.written_plain) for name, one in done.items()
    ]

    def tell(new: Verification) -> None:
        whole = known.joined(new).ordered(["base", *run.plan.recipe.variants])
        run.progress.found(first_finding(whole.measures, run.plan.file.sweeps))

    corpus, languages = run.plan.corpus, run.plan.verify_languages
    with run.timed("verify"):
        return verify(stack, variants, corpus, languages, spec, run.progress, missing, tell, team)


def _kept_paths(model: _Measured, spec: VerifySpec, precision: Precision) -> dict[str, Path | None]:
    """Return where the figures of a model are kept, by kind."""
    run, surgery = model.run, model.surgery
    donors = {donor: run.donors[donor] for item in surgery.operations for donor in item.donors}
    texts = {language: run.plan.corpus.text(language).evaluate_hash for language in run.plan.verify_languages}
    of_model = partial(kept_path, surgery, donors, texts, spec, precision, run.place)
    return {kind: of_model(kind) for kind in model.kinds(spec)}


def _method(run: Run, precision: Precision, spec: VerifySpec) -> dict[str, Any]:
    begun = run.token_counts.begun()
    return {
        "tokens": spec.tokens,
        "window": spec.window,
        "stride": new_tokens(begun, spec.window, spec.stride or spec.window),
        "bos": f"{begun} before every window" if begun else "none (the tokenizer adds none)",
        "precision": precision,
        "device": run.place.device,
        "interval": {"level": LEVEL, "resamples": RESAMPLES, "seed": SEED},
    }
