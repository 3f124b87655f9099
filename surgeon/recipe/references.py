"""Names in a recipe that refer to nothing: regions, variants, operations, languages.

All of this works on raw data, so that it sees a recipe with other problems too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from surgeon.errors import did_you_mean
from surgeon.operations import OPERATIONS
from surgeon.recipe.lines import KeyPath
from surgeon.region.algebra import parse


def dangling(data: Mapping[str, Any]) -> Iterator[tuple[KeyPath, str]]:
    """Find names that refer to nothing."""
    regions, variants = _mapping(data, "regions"), _mapping(data, "variants")
    for name, region in regions.items():
        if not isinstance(region, dict):
            continue
        origin = region.get("from")
        if isinstance(origin, str):
            if origin not in regions:
                yield ("regions", name, "from"), f"no region '{origin}'{did_you_mean(origin, regions)}"
            elif not _reaches_score(regions, name):
                yield ("regions", name, "from"), f"region '{origin}' has no score to take"
        for key, other in mentions(region):
            if other not in regions:
                yield ("regions", name, *key), f"no region '{other}'{did_you_mean(other, regions)}"
        if _reaches_itself(regions, name):
            yield ("regions", name), f"region '{name}' is made from itself, in a circle"
        select = region.get("select")
        language = select.get("monolingual") if isinstance(select, dict) else None
        scored = _scored_languages(regions, name)
        if isinstance(language, str) and _score(regions, name).get("kind") in ("magnitude", "random"):
            what = "this score knows no languages: monolingual needs grad_param or wanda"
            yield ("regions", name, "select", "monolingual"), what
        if isinstance(language, str) and scored and language not in scored:
            yield (
                ("regions", name, "select", "monolingual"),
                f"'{language}' is not scored{did_you_mean(language, scored)}",
            )
    for name, variant in variants.items():
        if not _is_file_name(name):
            yield ("variants", name), f"variant name '{name}' cannot name a folder: use letters, digits, . _ -"
        operations = variant.get("operations") if isinstance(variant, dict) else None
        frozen = variant.get("freeze") if isinstance(variant, dict) else None
        if isinstance(frozen, str) and frozen not in regions:
            yield ("variants", name, "freeze"), f"no region '{frozen}'{did_you_mean(frozen, regions)}"
        for i, operation in enumerate(operations if isinstance(operations, list) else ()):
            if isinstance(operation, dict):
                yield from _dangling_operation(("variants", name, "operations", i), operation, regions)
    for name in regions:
        if not _is_file_name(name):
            yield ("regions", name), f"region name '{name}' cannot name a file: use letters, digits, . _ -"
    expect = _mapping(data, "verify").get("expect")
    swept = any(isinstance(variant, dict) and variant.get("sweep") for variant in variants.values())
    # The points of a sweep have names only once it is expanded, and then all names are looked at again.
    for i, expectation in enumerate(expect if isinstance(expect, list) and not swept else ()):
        variant = expectation.get("variant") if isinstance(expectation, dict) else None
        if isinstance(variant, str) and variant not in variants:
            yield ("verify", "expect", i, "variant"), f"no variant '{variant}'{did_you_mean(variant, variants)}"


def mentions(region: Mapping[str, Any]) -> Iterator[tuple[KeyPath, str]]:
    """Names of the regions that a region is made from, and under which key they stand."""
    combine = region.get("combine")
    if isinstance(combine, str):
        try:
            yield from ((("combine",), name) for name in parse(combine).names())
        except ValueError:
            return  # the schema says what is wrong with it
    for key in ("dimensions", "control"):
        holder = region.get(key)
        of = holder.get("of") if isinstance(holder, dict) else None
        if isinstance(of, str):
            yield (key, "of"), of


def _reaches_itself(regions: Mapping[str, Any], start: str) -> bool:
    seen: set[str] = set()
    waiting = [start]
    while waiting:
        region = regions.get(waiting.pop())
        for _, name in mentions(region) if isinstance(region, dict) else ():
            if name == start:
                return True
            if name not in seen:
                seen.add(name)
                waiting.append(name)
    return False


def _dangling_operation(
    key: KeyPath, operation: Mapping[str, Any], regions: Mapping[str, Any]
) -> Iterator[tuple[KeyPath, str]]:
    kinds = [name for name in operation if name in OPERATIONS]
    if not kinds:
        word = next(iter(operation), "")
        yield key, f"unknown operation '{word}'{did_you_mean(str(word), OPERATIONS)}"
    for kind in kinds:
        region = operation[kind]
        if isinstance(region, str) and region not in regions:
            yield (*key, kind), f"no region '{region}'{did_you_mean(region, regions)}"


def _mapping(data: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = data.get(key)
    return value if isinstance(value, dict) else {}


def _is_file_name(name: str) -> bool:
    return bool(name) and name[0].isalnum() and all(c.isalnum() or c in "._-" for c in name) and name != "base"


def _origin(regions: Mapping[str, Any], name: str) -> dict[str, Any] | None:
    """Follow `from` to the region that holds the score; None if the chain breaks or is a circle."""
    seen: set[str] = set()
    while name not in seen and isinstance(regions.get(name), dict):
        seen.add(name)
        region: dict[str, Any] = regions[name]
        if not isinstance(region.get("from"), str):
            return region
        name = region["from"]
    return None


def _reaches_score(regions: Mapping[str, Any], name: str) -> bool:
    origin = _origin(regions, name)
    return origin is not None and "score" in origin


def _score(regions: Mapping[str, Any], name: str) -> dict[str, Any]:
    return _mapping(_origin(regions, name) or {}, "score")


def _scored_languages(regions: Mapping[str, Any], name: str) -> list[str]:
    languages = _score(regions, name).get("languages")
    return [language for language in languages if isinstance(language, str)] if isinstance(languages, list) else []
