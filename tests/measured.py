"""Perplexity alone of variants in memory, as tests ask for it that measure by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from surgeon.measure.measuring import Look, measure
from surgeon.measure.perplexity import EvaluationText, Perplexity, as_measures, window_pieces
from surgeon.model.editing import Variant
from surgeon.model.layer_stack import Stack
from surgeon.model.results import Measure
from surgeon.progress import Progress


def measure_variants(
    stack: Stack, variants: Sequence[Variant], texts: Mapping[str, EvaluationText], batch_size: int, progress: Progress
) -> dict[str, dict[str, Measure]]:
    """Measure each variant on each language."""
    look = Look(Perplexity(), window_pieces(texts, batch_size), frozenset(variant.name for variant in variants))
    sizes = {language: text.bytes for language, text in texts.items()}
    found = measure(stack, variants, [look], progress)
    return {name: as_measures(by_kind["perplexity"], sizes) for name, by_kind in found.items()}
