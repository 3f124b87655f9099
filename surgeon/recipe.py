"""The recipe: its schema, and YAML with line numbers turned into it.

All problems of a recipe are reported at once, each with its file and line. Later stages (the plan, the
corpus) use `RecipeFile.problem` to point at the same lines.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from surgeon.errors import InputError, Problem, RecipeError, did_you_mean
from surgeon.operations import OPERATIONS, Operation

KeyPath: TypeAlias = tuple[str | int, ...]
Fraction = Annotated[float, Field(gt=0.0, le=1.0)]
Count = Annotated[int, Field(ge=1)]


class Model(BaseModel):
    """Base of the schema: immutable, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, populate_by_name=True)


class ScoreSpec(Model):
    """How importance is measured (docs/method.md)."""

    kind: Literal["grad_param"]
    languages: Annotated[list[str], Field(min_length=1)]
    samples: Count = Field(64, description="sequences per language, at most; fewer if the text runs out")
    sequence_length: Annotated[int, Field(ge=2)] = 256
    batch_size: Count = 4
    reduction: Literal["signed", "absolute"] = "signed"
    dtype: Literal["auto", "float32", "native"] = Field(
        "auto", description="arithmetic: float32, or the weights' own dtype; auto is float32 on a CPU, else native"
    )


class SelectSpec(Model):
    """Which entries of the scored tensors form the region: exactly one of top, bottom, random."""

    top: Fraction | None = None
    bottom: Fraction | None = None
    random: Fraction | None = None
    seed: Annotated[int, Field(ge=0)] = 0
    scope: Literal["tensor", "layer", "global"] = "tensor"
    monolingual: str | None = Field(None, description="a scored language: its top entries minus every other language's")

    @property
    def kind(self) -> Literal["top", "bottom", "random"]:
        """Which of the three was given."""
        return "top" if self.top is not None else "bottom" if self.bottom is not None else "random"

    @property
    def fraction(self) -> float:
        """The share of entries to select."""
        return next(value for value in (self.top, self.bottom, self.random) if value is not None)

    @model_validator(mode="after")
    def _one_kind(self) -> SelectSpec:
        given = [name for name in ("top", "bottom", "random") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of top, bottom, random (given: {', '.join(given) or 'none'})")
        if self.monolingual is not None and given != ["top"]:
            raise ValueError("monolingual goes with top")
        return self


class RegionSpec(Model):
    """A region: from a file, or selected by a score over the tensors of its scope."""

    file: str | None = Field(None, description="a region file to take as it is")
    score: ScoreSpec | None = None
    from_: str | None = Field(None, alias="from", description="another region whose score to use")
    select: SelectSpec | None = None
    include: list[str] = Field([], description="roles or tensor name patterns; empty: all of the decoder layers")
    exclude: list[str] = []

    @model_validator(mode="after")
    def _one_origin(self) -> RegionSpec:
        if self.file is not None:
            if self.model_fields_set - {"file"}:
                raise ValueError("a region from a file takes no other keys")
            return self
        if self.select is None:
            raise ValueError("needs `select: {top: 0.01}` (or bottom, random), or `file:`")
        if self.score is not None and self.from_ is not None:
            raise ValueError("give either score or from, not both")
        if self.select.kind != "random" and self.score is None and self.from_ is None:
            raise ValueError(f"select {self.select.kind} needs a score: add `score:` or `from: REGION`")
        return self


class VariantSpec(Model):
    """Operations in the order in which they are done, a region to freeze, and whether the result is written."""

    operations: list[Operation] = []
    freeze: str | None = Field(None, description="a region whose entries trainers shall keep; writes `freeze/` beside")
    write: bool = True

    @model_validator(mode="after")
    def _does_something(self) -> VariantSpec:
        if not self.operations and self.freeze is None:
            raise ValueError("does nothing: give it `operations: [{zero: REGION}]`, or `freeze: REGION`")
        if self.freeze is not None and not self.write:
            raise ValueError("freeze writes a bundle beside the weights, so it does not go with `write: false`")
        return self


class ExpectSpec(Model):
    """A bound on the ratio of a variant's perplexity to the base's, over all languages or one."""

    variant: str
    ratio_at_least: Annotated[float, Field(gt=0)] | None = None
    ratio_at_most: Annotated[float, Field(gt=0)] | None = None
    language: str | None = None

    @model_validator(mode="after")
    def _some_bound(self) -> ExpectSpec:
        if self.ratio_at_least is None and self.ratio_at_most is None:
            raise ValueError("give ratio_at_least or ratio_at_most")
        return self


class VerifySpec(Model):
    """How perplexity is measured (docs/method.md)."""

    languages: Literal["all"] | Annotated[list[str], Field(min_length=1)] = "all"
    tokens: Annotated[int, Field(ge=2)] = Field(512, description="per language, at most")
    window: Annotated[int, Field(ge=2)] = 256
    stride: Count | None = Field(None, description="new tokens per window; the window itself when left out")
    batch_size: Count = 4
    expect: list[ExpectSpec] = []

    @model_validator(mode="after")
    def _stride_fits(self) -> VerifySpec:
        if self.stride is not None and self.stride > self.window:
            raise ValueError(
                f"stride {self.stride} is longer than the window of {self.window}: tokens would be skipped"
            )
        return self


class DatasetText(Model):
    """One language's text from a dataset, local or on the Hub, read as a stream."""

    dataset: str
    config: str | None = None
    split: str = "train"
    field: str = "text"
    revision: str | None = None
    documents: Count = 2000


class Recipe(Model):
    """A whole recipe; paths in it are relative to the folder the command is run in."""

    version: Literal[1]
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    model: str
    corpus: str | dict[str, str | DatasetText] = "builtin:udhr30"
    regions: dict[str, RegionSpec] = {}
    variants: dict[str, VariantSpec] = {}
    verify: VerifySpec | None = None
    output: str

    def score_of(self, region: str) -> ScoreSpec | None:
        """Return the score a region selects by, following `from`."""
        spec = self.regions[region]
        return self.score_of(spec.from_) if spec.from_ is not None else spec.score


@dataclass(frozen=True)
class RecipeFile:
    """A valid recipe and where each of its keys stands."""

    recipe: Recipe
    path: str
    lines: Mapping[KeyPath, str]

    def problem(self, path: KeyPath, what: str) -> Problem:
        """Make a problem that points at the line of `path`, or of its nearest enclosing key."""
        return Problem(_where(self.path, self.lines, path), what)


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> RecipeFile:
    """Read a recipe and apply `PATH=VALUE` overrides (values are YAML).

    Raises:
        RecipeError: every problem found.
        InputError: there is no such file, or an override is malformed.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: cannot read the recipe ({error.strerror})") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: not a recipe: the file is not UTF-8 text") from None
    lines: dict[KeyPath, str] = {}
    problems: list[Problem] = []
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        data = _construct(node, (), str(path), lines, problems) if node is not None else {}
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise RecipeError([Problem(f"{path}:{line}", f"not YAML: {error.problem}")]) from None
    if not isinstance(data, dict):
        raise RecipeError([Problem(f"{path}:1", "a recipe is a mapping that begins with `version: 1`")])
    for override in overrides:
        _override(data, override, lines)
    return _validate(data, str(path), lines, problems)


def _validate(data: dict[str, Any], path: str, lines: dict[KeyPath, str], problems: list[Problem]) -> RecipeFile:
    problems += [Problem(_where(path, lines, key), what) for key, what in _dangling(data)]
    try:
        recipe = Recipe.model_validate(data)
    except ValidationError as error:
        problems += [_explain(path, lines, detail) for detail in error.errors()]
        recipe = None
    if problems or recipe is None:
        raise RecipeError(sorted(set(problems), key=lambda problem: _line_number(problem.where)))
    return RecipeFile(recipe, path, lines)


def _line_number(where: str) -> int:
    tail = where.rpartition(":")[2]
    return int(tail) if tail.isdigit() else 0


def _where(path: str, lines: Mapping[KeyPath, str], key: KeyPath) -> str:
    while key and key not in lines:
        key = key[:-1]
    return lines.get(key, f"{path}:1")


def _construct(node: yaml.Node, key: KeyPath, path: str, lines: dict[KeyPath, str], problems: list[Problem]) -> Any:
    """Build plain data from a YAML node, noting each key's line and the traps of YAML 1.1."""
    lines.setdefault(key, f"{path}:{node.start_mark.line + 1}")
    if isinstance(node, yaml.SequenceNode):
        return [_construct(child, (*key, i), path, lines, problems) for i, child in enumerate(node.value)]
    if isinstance(node, yaml.MappingNode):
        result: dict[str, Any] = {}
        for name_node, child in node.value:
            where = f"{path}:{name_node.start_mark.line + 1}"
            name = name_node.value
            if not isinstance(name, str):
                problems.append(Problem(where, "a key must be plain text"))
                continue
            if name_node.tag == "tag:yaml.org,2002:bool":
                problems.append(Problem(where, _bool_trap(name)))
            if name in result:
                problems.append(Problem(where, f"the key '{name}' is given twice"))
            lines[(*key, name)] = where
            result[name] = _construct(child, (*key, name), path, lines, problems)
        return result
    value = yaml.SafeLoader("").construct_object(node)
    if isinstance(value, bool) and node.value.lower() not in ("true", "false"):
        problems.append(Problem(f"{path}:{node.start_mark.line + 1}", _bool_trap(node.value)))
        return node.value
    return value


def _bool_trap(word: str) -> str:
    meaning = "false" if word.lower() in ("no", "off", "n", "false") else "true"
    return f"YAML reads the bare word `{word}` as {meaning}; write '{word}' in quotes if you mean the word or language"


def _override(data: dict[str, Any], override: str, lines: dict[KeyPath, str]) -> None:
    dotted, equals, text = override.partition("=")
    if not equals or not dotted:
        raise InputError(f"--set {override}: write --set PATH=VALUE, for example --set verify.tokens=128")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        value = text
    target: Any = data
    *parents, last = [int(part) if part.isdigit() else part for part in dotted.split(".")]
    for part in parents:
        if isinstance(target, list) and isinstance(part, int) and part < len(target):
            target = target[part]
        elif isinstance(target, dict):
            target = target.setdefault(str(part), {})
        else:
            raise InputError(f"--set {override}: the recipe has no such place")
    if isinstance(target, list) and isinstance(last, int) and last < len(target):
        target[last] = value
    elif isinstance(target, dict):
        target[str(last)] = value
    else:
        raise InputError(f"--set {override}: the recipe has no such place")
    path = (*parents, last)
    for key in [key for key in lines if key[: len(path)] == path]:
        del lines[key]
    lines[path] = f"--set {dotted}"


def _dangling(data: Mapping[str, Any]) -> Iterator[tuple[KeyPath, str]]:
    """Find names that refer to nothing; works on raw data, so that it sees a recipe with other problems too."""
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
        select = region.get("select")
        language = select.get("monolingual") if isinstance(select, dict) else None
        scored = _scored_languages(regions, name)
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
    for i, expectation in enumerate(expect if isinstance(expect, list) else ()):
        variant = expectation.get("variant") if isinstance(expectation, dict) else None
        if isinstance(variant, str) and variant not in variants:
            yield ("verify", "expect", i, "variant"), f"no variant '{variant}'{did_you_mean(variant, variants)}"


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


def _scored_languages(regions: Mapping[str, Any], name: str) -> list[str]:
    origin = _origin(regions, name) or {}
    score = origin.get("score")
    languages = score.get("languages") if isinstance(score, dict) else None
    return [language for language in languages if isinstance(language, str)] if isinstance(languages, list) else []


def _explain(path: str, lines: Mapping[KeyPath, str], detail: Any) -> Problem:
    """Turn one pydantic error into our words."""
    key: KeyPath = tuple(detail["loc"])
    kind, value = detail["type"], detail.get("input")
    where = _where(path, lines, key)
    name = ".".join(str(part) for part in key if part not in ("Zero", "str", "DatasetText"))
    if kind == "extra_forbidden":
        return Problem(where, f"unknown key '{key[-1]}'{did_you_mean(str(key[-1]), _keys_at(key[:-1]))}")
    if kind == "missing":
        return Problem(where, f"'{name}' is missing")
    if kind in ("float_type", "int_type") and isinstance(value, str) and _is_number(value):
        return Problem(where, f"{name}: YAML reads {value} as text, not as a number; write {float(value):g}")
    message = detail["msg"].removeprefix("Value error, ")
    shown = "" if isinstance(value, dict | list) or kind == "value_error" else f" (got {value!r})"
    return Problem(where, f"{name}: {message[0].lower()}{message[1:]}{shown}")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _keys_at(key: KeyPath) -> list[str]:
    """Keys that the schema knows at a place, for the did-you-mean."""
    schema = recipe_schema()
    node: Any = schema
    for part in key:
        node = _step(schema, node, part)
    return sorted(_resolve(schema, node).get("properties", {}))


def _resolve(schema: Any, node: Any) -> Any:
    while "$ref" in node:
        node = schema["$defs"][node["$ref"].rpartition("/")[2]]
    for choice in node.get("anyOf", ()):
        resolved = _resolve(schema, choice)
        if resolved.get("type") in ("object", "array"):
            return resolved
    return node


def _step(schema: Any, node: Any, part: str | int) -> Any:
    node = _resolve(schema, node)
    if isinstance(part, int):
        return node.get("items", {})
    properties = node.get("properties", {})
    if part in properties:
        return properties[part]
    extra = node.get("additionalProperties", {})
    return extra if isinstance(extra, dict) else {}


def recipe_schema() -> dict[str, Any]:
    """Return the JSON schema of a recipe, for editors."""
    return Recipe.model_json_schema(by_alias=True)


def resolved_yaml(recipe: Recipe) -> str:
    """Return a recipe as YAML with its defaults filled in; loading it gives an equal recipe."""
    data = json.loads(recipe.model_dump_json(by_alias=True, exclude_none=True))
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True)
