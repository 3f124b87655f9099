"""What is wrong with a recipe, in our words: what the schema objects to, and names that refer to nothing.

Each problem comes with the key that it is about; `reading` says in which line that key stands.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeAlias, get_args

from pydantic import BaseModel, RootModel, ValidationError

from surgeon.errors import did_you_mean
from surgeon.kinds import kinds
from surgeon.operations import OPERATIONS
from surgeon.recipe.plain_yaml import KeyPath
from surgeon.recipe.schema import ExpectSpec, Recipe, RegionSpec, VariantSpec, VerifySpec
from surgeon.text.languages import code_meant

if TYPE_CHECKING:
    from surgeon.measure.base import Measurement

MOST_PROBLEMS = 100  # that are shown
LONGEST_CHAIN = 32  # of regions, each made from the next or with the next one's score
_MOST_CIRCLES = 10  # that are told apart

Problems: TypeAlias = Iterator[tuple[KeyPath, str]]


def dangling(
    regions: Mapping[str, RegionSpec], variants: Mapping[str, VariantSpec], known: Collection[str]
) -> Problems:
    """Find names that refer to nothing in regions and variants, and regions that are made from themselves.

    `known` are the names of all regions, also of those that are not valid; while one of them is not, `regions` lacks
    it, and chains of regions are not followed.
    """
    for name, region in regions.items():
        if region.from_ is not None and region.from_ not in known:
            yield ("regions", name, "from"), _unknown("region", region.from_, known)
        for key, other in _mentions(region):
            if other not in known:
                yield ("regions", name, *key), _unknown("region", other, known)
    if len(known) == len(regions):
        for name, region in regions.items():
            yield from _score_problems(name, region, regions)
        yield from _circles(regions)
    for name, variant in variants.items():
        for key, region_name in named_regions(variant):
            if region_name not in known:
                yield ("variants", name, *key), _unknown("region", region_name, known)


def unknown_names(data: Mapping[str, Any], at: KeyPath, known: Collection[str]) -> Problems:
    """Find names of no region in what stands at a key of a recipe's data, a region or variant that is not valid."""
    value: Any = data
    for part in at:
        value = value[part]
    for key, name in _names_in(value) if isinstance(value, dict) else ():
        if isinstance(name, str) and name not in known:
            yield (*at, *key), _unknown("region", name, known)


def _names_in(data: Mapping[str, Any]) -> Iterator[tuple[KeyPath, Any]]:
    """Yield what stands where a region or variant names regions."""
    yield from (((key,), data.get(key)) for key in ("from", "freeze", "train_only"))
    for key, region in kinds("surgeon.regions").items():
        yield from (((key, *below), name) for below, name in region.mentioned(data.get(key)))
    operations = data.get("operations")
    for i, operation in enumerate(operations if isinstance(operations, list) else ()):
        for key, named in operation.items() if isinstance(operation, dict) else ():
            if key in OPERATIONS:
                yield from _named(("operations", i, key), named)


def unusable_names(regions: Iterable[str], variants: Iterable[str]) -> Problems:
    """Find names that cannot be those of files."""
    for name in regions:
        if not _is_file_name(name):
            yield ("regions", name), f"region name '{name}' cannot name a file: use letters, digits, . _ -"
    for name in variants:
        if not _is_file_name(name):
            yield ("variants", name), f"variant name '{name}' cannot name a folder: use letters, digits, . _ -"


def named_regions(variant: VariantSpec) -> Problems:
    """Yield the regions that a variant names, with the key of each."""
    for i, operation in enumerate(variant.operations):
        yield from _named(("operations", i, operation.kind), getattr(operation, operation.kind))
    if variant.held is not None:
        yield ("freeze" if variant.freeze is not None else "train_only",), variant.held


def _named(key: KeyPath, value: Any) -> Iterator[tuple[KeyPath, Any]]:
    """Yield the region that an operation names under its key, or each of a list of them."""
    return (((*key, j), name) for j, name in enumerate(value)) if isinstance(value, list) else iter([(key, value)])


def _mentions(region: RegionSpec) -> Problems:
    """Yield the regions that a region is made from, with the key of each."""
    kind = region.kind
    yield from (((kind.key, *below), name) for below, name in kind.mentioned(kind.model_dump()))


def _score_problems(name: str, region: RegionSpec, regions: Mapping[str, RegionSpec]) -> Problems:
    """Find what is wrong with the score that a region selects by: there is none, or none for its language."""
    source: RegionSpec | None = region
    for _ in range(LONGEST_CHAIN):
        if source is None or source.from_ is None:
            break
        source = regions.get(source.from_)
    score = source.score if source is not None and source.from_ is None else None
    if region.from_ in regions and score is None:
        yield ("regions", name, "from"), f"region '{region.from_}' has no score to take"
    own = region.select.own if region.select is not None else None
    if score is None or region.select is None or own is None:
        return
    key = "monolingual" if region.select.monolingual is not None else "specific"
    if score.on_text is None:
        what = f"this score knows no languages: {key} needs one on text, such as grad_param"
        yield ("regions", name, "select", key), what
    elif own not in score.on_text.languages:
        what = f"'{own}' is not scored{code_meant(own, score.on_text.languages)}"
        yield ("regions", name, "select", key), what


def _circles(regions: Mapping[str, RegionSpec]) -> Problems:
    """Find regions that are made from themselves, or by way of very many others."""
    parts = {name: {other for _, other in _mentions(region)} & regions.keys() for name, region in regions.items()}
    for _ in range(_MOST_CIRCLES):
        try:
            order = list(TopologicalSorter(parts).static_order())
        except CycleError as error:
            circle = set(error.args[1])
            yield from ((("regions", name), f"region '{name}' is made from itself, in a circle") for name in circle)
            parts = {name: others - circle for name, others in parts.items() if name not in circle}
        else:
            lengths: dict[str, int] = {}
            for name in order:
                lengths[name] = 1 + max((lengths[other] for other in parts.get(name, ())), default=0)
                if lengths[name] == LONGEST_CHAIN + 1:
                    what = f"region '{name}' is made from a chain of more than {LONGEST_CHAIN} others"
                    yield ("regions", name), what
            return


def unmet(verify: VerifySpec, variants: Collection[str]) -> Problems:
    """Find in expectations, and in `continued_by`, variants that there are not, and figures that are not measured."""
    for i, variant in enumerate(verify.continued_by or ()):
        if variant not in variants:
            yield ("verify", "continued_by", i), _unknown("variant", variant, variants)
    measured = {item.kind: item for item in verify.measurements}
    for i, item in enumerate(verify.expect):
        at: KeyPath = ("verify", "expect", i)
        if item.variant not in variants:
            yield (*at, "variant"), _unknown("variant", item.variant, variants)
        if item.measurement in measured:
            for key, what in _figure_problems(item, measured[item.measurement]):
                yield ((*at, key) if key else at), what
        elif item.measurement in kinds("surgeon.measurements"):
            yield (*at, "measurement"), f"{item.measurement} is not measured: give it its key in `verify`"
        elif item.measurement is not None:
            meant = did_you_mean(item.measurement, measured)
            yield (*at, "measurement"), f"no measurement '{item.measurement}'{meant}"


def _figure_problems(item: ExpectSpec, measurement: Measurement) -> Iterator[tuple[str, str]]:
    """Find quantities, groups and bounds that a measurement does not have, each with the key that names it."""
    kind, grouped_by = measurement.kind, measurement.grouped_by
    by_language = grouped_by == "language"
    if item.language is not None and not by_language:
        yield "language", f"{kind} has a figure for each {grouped_by}: write `group: ...`"
    if item.group is not None and by_language:
        yield "group", f"{kind} has a figure for each language: write `language: ...`"
    if not measurement.has_mean and item.group is None:
        yield "", f"{kind} has no mean over each {grouped_by}: say `group: ...`"
    quantities = {quantity.name: quantity for quantity in measurement.quantities()}
    if not quantities:  # only the figures themselves say which there are
        return
    name = item.quantity if item.quantity is not None else next(iter(quantities))
    if name not in quantities:
        yield "quantity", f"{kind} has no quantity '{name}'{did_you_mean(name, quantities)}"
        return
    to_base = quantities[name].compare == "base"
    if item.of_change and to_base:
        yield "", f"{name} compares with the base already: say at_least or at_most"
    if item.at != "point" and not item.of_change and not to_base:
        yield "at", f"the interval is that of the change of {name}: say change_at_least or change_at_most"


def objections(error: ValidationError, data: Any, at: KeyPath = ()) -> Problems:
    """Say what the schema objects to.

    Args:
        error: of the schema, for what stands at the key `at`.
        data: the whole recipe, as plain data.
        at: where in the recipe it stands.
    """
    details = [{**detail, "loc": (*at, *detail["loc"])} for detail in error.errors(include_url=False)]
    placed = [(_key(detail, data), detail) for detail in details]
    # Of a mapping that may also be text, "should be text" says nothing where it is said what is wrong with the mapping.
    doubtful = [detail["type"] == "string_type" and isinstance(detail["input"], dict) for detail in details]
    certain = [key for (key, _), in_doubt in zip(placed, doubtful, strict=True) if not in_doubt]
    said = {key[:length] for key in certain for length in range(len(key) + 1)}
    for (key, detail), in_doubt in zip(placed, doubtful, strict=True):
        if not (in_doubt and key in said):
            yield key, _what(key, detail)


def _key(detail: Mapping[str, Any], data: Any) -> KeyPath:
    """Return the key path of an objection: pydantic's, without what names a choice of the schema and is no key."""
    location = detail["loc"]
    if location[:1] == ("variants",) and location[2:3] == ("operations",):
        location = location[:4] + location[5:]  # after its number comes the operation's kind, which may be a key too
    key: list[str | int] = []
    for part in location:
        if (part in data) if isinstance(data, dict) else isinstance(data, list) and part in range(len(data)):
            key.append(part)
            data = data[part]
    return (*key, location[-1]) if detail["type"] == "missing" else tuple(key)


def _what(key: KeyPath, detail: Mapping[str, Any]) -> str:
    """Say what is wrong."""
    kind, value = detail["type"], detail["input"]
    name = ".".join(str(part) for part in key)
    if kind == "extra_forbidden":
        return f"unknown key '{key[-1]}'{did_you_mean(str(key[-1]), _keys_at(detail['loc'][:-1]))}"
    if kind == "missing":
        return f"'{name}' is missing"
    if kind in ("union_tag_not_found", "union_tag_invalid"):
        return _unknown_choice(name, detail)
    if kind in ("float_type", "int_type") and isinstance(value, str) and _is_number(value):
        return f"{name}: YAML reads {value} as text, not as a number; write {_as_number(value)}"
    message = detail["msg"].removeprefix("Value error, ")
    shown = "" if isinstance(value, dict | list) or kind == "value_error" else f" (got {value!r})"
    if kind == "less_than_equal" and detail["ctx"]["le"] == 1 and 1 < value <= 100:
        shown = f" (got {value!r}; {value:g} % is {value / 100:g})"
    return f"{name}: {message[0].lower()}{message[1:]}{shown}"


def _unknown_choice(name: str, detail: Mapping[str, Any]) -> str:
    """Say that an operation, or the kind of a score, is missing or unknown."""
    told_by, value = detail["ctx"]["discriminator"], detail["input"]
    if not told_by.startswith("'"):  # operations are told apart by a function, scores by a field
        word = next(iter(value), "") if isinstance(value, dict) else value
        return f"unknown operation '{word}'{did_you_mean(str(word), OPERATIONS)}"
    field = told_by.strip("'")
    if detail["type"] == "union_tag_not_found":
        return f"'{name}.{field}' is missing"
    known = [word.strip(" '") for word in detail["ctx"]["expected_tags"].split(",")]
    word = str(detail["ctx"]["tag"])
    return f"{name}: unknown {field} '{word}'{did_you_mean(word, known)}"


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _as_number(text: str) -> str:
    """Return a number as YAML 1.1 reads one: with a point before an exponent."""
    short = f"{float(text):g}"
    return short if "." in short else short.replace("e", ".0e")


def _keys_at(location: Sequence[str | int]) -> list[str]:
    """Return the keys that the schema knows at a place of it, for the did-you-mean."""
    models: list[type[BaseModel]] = [Recipe]
    for part in location:
        fields = [
            field for model in models for name, field in model.model_fields.items() if part in (field.alias, name)
        ]
        chosen = [model for model in models if part in (model.__name__, _tag(model))]
        if chosen:
            models = chosen
        elif fields:
            models = [model for field in fields for model in _models_in(field.annotation)]
        # else it is the number or name of one of several of the same kind
    return sorted({field.alias or name for model in models for name, field in model.model_fields.items()})


def _tag(model: type[BaseModel]) -> str | None:
    """Return what tells a model from the others of a choice: an operation's key, or a score's `kind`."""
    field = model.model_fields.get("kind")
    return getattr(model, "kind", None) if field is None else next(iter(get_args(field.annotation)), None)


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """Yield the models that a value of this type may be, or may be made of."""
    if isinstance(annotation, type) and issubclass(annotation, RootModel):
        yield from _models_in(annotation.model_fields["root"].annotation)
    elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models_in(part)


def _unknown(kind: str, name: str, known: Iterable[str]) -> str:
    return f"no {kind} '{name}'{did_you_mean(name, islice(known, 1000))}"


def _is_file_name(name: str) -> bool:
    return bool(name) and name[0].isalnum() and all(c.isalnum() or c in "._-" for c in name) and name != "base"
