"""Names in a recipe that refer to nothing: regions, variants, operations, languages.

All of this works on raw data, so that it sees a recipe with other problems too.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from itertools import islice
from typing import Any, TypeAlias

from surgeon.errors import did_you_mean
from surgeon.kinds import kinds
from surgeon.operations import OPERATIONS
from surgeon.recipe.lines import KeyPath
from surgeon.text.languages import code_meant

LONGEST_CHAIN = 32  # of regions, each made from the next or with the next one's score
_MOST_CIRCLES = 10  # that are told apart

Found: TypeAlias = Iterator[tuple[KeyPath, str]]


def dangling(data: Mapping[str, Any]) -> Found:
    """Find names in a recipe that refer to nothing; expectations may name points of sweeps, see `expectations`."""
    regions, variants = _mapping(data, "regions"), _mapping(data, "variants")
    for name, region in regions.items():
        if isinstance(region, dict):
            yield from _region(name, region, regions)
        if not _is_file_name(name):
            yield ("regions", name), f"region name '{name}' cannot name a file: use letters, digits, . _ -"
    yield from _circles(regions)
    for name, variant in variants.items():
        if isinstance(variant, dict):
            yield from _variant(name, variant, regions)
        if not _is_file_name(name):
            yield ("variants", name), f"variant name '{name}' cannot name a folder: use letters, digits, . _ -"


def mentions(region: Mapping[str, Any]) -> Found:
    """Names of the regions that a region is made from, and under which key they stand."""
    for key, kind in kinds("surgeon.regions").items():
        yield from (((key, *below), name) for below, name in kind.mentioned(region.get(key)))


def _region(name: str, region: Mapping[str, Any], regions: Mapping[str, Any]) -> Found:
    origin = region.get("from")
    if isinstance(origin, str):
        if origin not in regions:
            yield ("regions", name, "from"), _none("region", origin, regions)
        elif "score" not in (_origin(regions, name) or {}):
            yield ("regions", name, "from"), f"region '{origin}' has no score to take"
    for key, other in mentions(region):
        if other not in regions:
            yield ("regions", name, *key), _none("region", other, regions)
    select = region.get("select")
    for chosen in ("monolingual", "specific"):
        language = select.get(chosen) if isinstance(select, dict) else None
        if isinstance(language, str):
            score = _mapping(_origin(regions, name) or {}, "score")
            scored = [code for code in _list(score.get("languages")) if isinstance(code, str)]
            kind = kinds("surgeon.scores").get(str(score.get("kind")))
            if kind is not None and "languages" not in kind.model_fields:
                what = f"this score knows no languages: {chosen} needs one on text, such as grad_param"
                yield ("regions", name, "select", chosen), what
            if scored and language not in scored:
                what = f"'{language}' is not scored{code_meant(language, scored)}"
                yield ("regions", name, "select", chosen), what


def _variant(name: str, variant: Mapping[str, Any], regions: Mapping[str, Any]) -> Found:
    for polarity in ("freeze", "train_only"):
        held = variant.get(polarity)
        if isinstance(held, str) and held not in regions:
            yield ("variants", name, polarity), _none("region", held, regions)
    for i, operation in enumerate(_list(variant.get("operations"))):
        if not isinstance(operation, dict):
            continue
        key: KeyPath = ("variants", name, "operations", i)
        kinds = [kind for kind in operation if kind in OPERATIONS]
        if not kinds:
            word = next(iter(operation), "")
            yield key, f"unknown operation '{word}'{did_you_mean(str(word), OPERATIONS)}"
        for kind in kinds:
            for where, region in named_regions(operation[kind], (*key, kind)):
                if region not in regions:
                    yield where, _none("region", region, regions)


def named_regions(value: Any, key: KeyPath) -> Found:
    """Return the region that an operation names, or each of a list of them, and where."""
    if isinstance(value, str):
        yield key, value
    for i, region in enumerate(_list(value)):
        if isinstance(region, str):
            yield (*key, i), region


def expectations(data: Mapping[str, Any], variants: Collection[str]) -> Found:
    """Find expectations of a recipe that are of none of the variants."""
    known = frozenset(variants)
    for i, variant in enumerate(_list(_mapping(data, "verify").get("continued_by"))):
        if isinstance(variant, str) and variant not in known:
            yield ("verify", "continued_by", i), _none("variant", variant, variants)
    for i, expectation in enumerate(_list(_mapping(data, "verify").get("expect"))):
        variant = expectation.get("variant") if isinstance(expectation, dict) else None
        if isinstance(variant, str) and variant not in known:
            yield ("verify", "expect", i, "variant"), _none("variant", variant, variants)


def _circles(regions: Mapping[str, Any]) -> Found:
    """Find regions that are made from themselves, or by way of very many others."""
    parts = {
        name: {other for _, other in mentions(region) if other in regions}
        for name, region in regions.items()
        if isinstance(region, dict)
    }
    for _ in range(_MOST_CIRCLES):
        try:
            order = list(TopologicalSorter(parts).static_order())
        except CycleError as error:
            circle = set(error.args[1])
            yield from ((("regions", name), f"region '{name}' is made from itself, in a circle") for name in circle)
            parts = {name: others - circle for name, others in parts.items() if name not in circle}
        else:
            yield from _long_chains(order, parts)
            return


def _long_chains(order: Iterable[str], parts: Mapping[str, Collection[str]]) -> Found:
    lengths: dict[str, int] = {}
    for name in order:
        lengths[name] = 1 + max((lengths[other] for other in parts.get(name, ())), default=0)
        if lengths[name] == LONGEST_CHAIN + 1:
            yield ("regions", name), f"region '{name}' is made from a chain of more than {LONGEST_CHAIN} others"


def _origin(regions: Mapping[str, Any], name: str) -> dict[str, Any] | None:
    """Follow `from` to the region that holds the score; None if the chain breaks, is a circle, or very long."""
    for _ in range(LONGEST_CHAIN):
        region = regions.get(name)
        if not isinstance(region, dict):
            return None
        if not isinstance(region.get("from"), str):
            return region
        name = region["from"]
    return None


def _none(kind: str, name: str, known: Iterable[str]) -> str:
    return f"no {kind} '{name}'{did_you_mean(name, islice(known, 1000))}"


def _mapping(data: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = data.get(key)
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _is_file_name(name: str) -> bool:
    return bool(name) and name[0].isalnum() and all(c.isalnum() or c in "._-" for c in name) and name != "base"
