"""What a report is about: which variant it tells of first, what stands beside it, and how far it moves a language."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from surgeon.model.results import exponential
from surgeon.report.data import Report
from surgeon.report.words import SAME

CONTROLS = 3  # at most, beside the cut


@dataclass(frozen=True)
class Story:
    """`cut` is the variant that the first picture is about, `controls` stand beside it.

    `region` and `beside` are the regions that the scan shows; `own` are the variants that cut one language's region,
    with that language.
    """

    cut: str | None
    controls: tuple[str, ...]
    region: str | None
    beside: str | None
    own: dict[str, str]

    @property
    def shown(self) -> list[str]:
        """The variants of the first picture."""
        return [name for name in (self.cut, *self.controls) if name is not None]


def tell(report: Report, about: str | None = None) -> Story:
    """Choose what is shown first: a variant, and the controls of its size.

    Args:
        report: what was found.
        about: the variant; by default the first that is no control.
    """
    measured = [*([about] if about is not None else []), *(name for name in report.measured_alone if name != about)]
    used = {name: variant.regions for name, variant in report.variants.items()}
    cuts = [name for name in measured if not all(is_control(report, region) for region in used[name])]
    cuts.sort(key=lambda name: not report.variants[name].done)  # one that only tells trainers something changes nothing
    cut = about or next(iter(cuts or measured), None)
    controls = [name for name in measured if name not in cuts and name != cut]
    if cut is not None:
        size = report.variants[cut].entries
        of_its_size = [name for name in controls if alike(report.variants[name].entries, size)]
        controls = sorted(of_its_size or controls, key=lambda name: max(_rank(report, region) for region in used[name]))
    named = [region for region in (used[cut] if cut else []) if region in report.regions]
    others = sorted(report.regions, key=lambda name: is_control(report, name))
    shown = next(iter([*named, *others]), None)
    beside = next((name for name in _likest(report, shown) if name != shown), None)
    own = {name: language for name in measured if (language := _language_of(report, used[name])) is not None}
    return Story(cut, tuple(controls[:CONTROLS]), shown, beside, own)


def drawn(report: Report, region: str) -> str | None:
    """Return how a region that stands beside others was drawn.

    Of ordinary entries: `random`, of the lowest score (`bottom`), in `dimensions`; or a control of the largest values
    (`magnitude`). None if its entries were chosen for what they are.
    """
    item, spec = report.regions.get(region), spec_of(report, region)
    select, control, dimensions, score = (spec.get(key) or {} for key in ("select", "control", "dimensions", "score"))
    kinds = {*select, control.get("draw"), item.origin if item is not None else None}
    if "bottom" in kinds:
        return "bottom"
    if control.get("draw") == "magnitude":
        return "magnitude"
    if dimensions.get("random"):
        return "dimensions"
    return "random" if "random" in kinds or score.get("kind") == "random" else None


def is_control(report: Report, region: str) -> bool:
    """Say whether a region is there to be compared with."""
    return drawn(report, region) is not None


def _rank(report: Report, region: str) -> int:
    """Order controls: ordinary entries first, those that do nothing last."""
    return {"magnitude": 1, "bottom": 2}.get(str(drawn(report, region)), 0)


def scored_languages(report: Report) -> set[str]:
    """Return the languages on whose text importance was scored."""
    return {item.language for item in report.scores}


def log_ratio(report: Report, variant: str, code: str) -> float:
    """Return the natural logarithm of a variant's perplexity over the base's."""
    return report.averaged(variant)[code].log_perplexity - report.perplexity["base"][code].log_perplexity


def ratio(report: Report, variant: str, code: str) -> float:
    """Return a variant's perplexity in one language as a multiple of the base's."""
    return exponential(log_ratio(report, variant, code))


def alike(one: int, other: int) -> bool:
    """Say whether two numbers of entries are the same within 2 %."""
    return abs(one - other) <= 0.02 * max(one, other)


def _likest(report: Report, region: str | None) -> list[str]:
    """Order the regions by what they tell beside one: controls first, of its size, those at random before others."""
    if region is None:
        return []
    size = report.regions[region].entries
    scanned = [name for name in report.regions if report.regions[name].scan is not None]
    return sorted(scanned, key=lambda name: (
        not is_control(report, name), not alike(report.regions[name].entries, size),
        _rank(report, name),
    ))  # fmt: skip


def _language_of(report: Report, regions: Sequence[str]) -> str | None:
    """Return the language whose own region a variant cuts, if it is one."""
    languages = {own_language(report, region) for region in regions}
    return languages.pop() if len(languages) == 1 else None


def own_cuts(report: Report) -> list[tuple[str, str, str]]:
    """Return each variant that cuts one language's own region, or a control of it: variant, language, what it is."""
    cuts, kinds = [], {"random": "random", "magnitude": "largest", "bottom": "lowest"}
    for name in report.measured_alone:
        for region in report.variants[name].regions if name in report.variants else ():
            code = own_language(report, region)
            of = (spec_of(report, region).get("control") or {}).get("of")
            if code is None and isinstance(of, str):
                code = own_language(report, of)
            if code is not None and code in report.perplexity["base"]:
                cuts.append((name, code, kinds.get(str(drawn(report, region)), "own region")))
    return cuts


def rise(report: Report, variant: str, code: str) -> tuple[float, float, float | None]:
    """Return how a variant changes a language, and the median of the others: ratios, and what is between them.

    The third is the logarithm of the first over that of the second; None where the others do not rise.
    """
    own = log_ratio(report, variant, code)
    others = sorted(log_ratio(report, variant, other) for other in report.perplexity["base"] if other != code)
    if not others or not all(map(math.isfinite, [own, *others])):
        return exponential(own), math.nan, None
    median = statistics.median(others)
    return exponential(own), exponential(median), own / median if median > math.log(1 + SAME) else None


def own_language(report: Report, region: str) -> str | None:
    """Return the language that alone needs a region's entries, if it was chosen so."""
    language = (spec_of(report, region).get("select") or {}).get("monolingual")
    return language if isinstance(language, str) else None


def spec_of(report: Report, region: str) -> dict[str, Any]:
    """Return what the recipe says of a region."""
    known = report.recipe.get("regions") or {}
    while region not in known and "-" in region:  # at a point of a sweep it is named by the point, too
        region = region.rpartition("-")[0]
    spec = known.get(region)
    return spec if isinstance(spec, dict) else {}
