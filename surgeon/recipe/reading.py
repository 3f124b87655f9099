"""A recipe's file: read and validated once, with all its problems reported at once.

Text becomes plain data, `--set` puts other values into it, the schema reads it and names are looked up; then sweeps
add their points. Later stages use `RecipeFile.problem` to point at the lines of the file.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from surgeon.errors import InputError, Problem, RecipeError, did_you_mean, present
from surgeon.recipe.corpus import TextSpec
from surgeon.recipe.fields import Model
from surgeon.recipe.plain_yaml import (
    DEEPEST,
    LONGEST,
    KeyPath,
    Node,
    NotYaml,
    along,
    dotted_path,
    line_number,
    plain,
    read_yaml,
    shared,
    with_value,
)
from surgeon.recipe.problems import MOST_PROBLEMS, dangling, objections, unknown_names, unmet, unusable_names
from surgeon.recipe.schema import Recipe, RegionSpec, VariantSpec
from surgeon.recipe.sweeps import Copy, Sweep, expand

_LONGEST_PROBLEM = 1000  # characters


@dataclass
class Places:
    """Where the keys of a recipe stand: in the file, or in `--set PATH` for those that are `overridden`.

    `moved` leads from a region that was given in place of a name to where it was given, `copies` has what sweeps add.
    """

    tree: Node
    overridden: list[KeyPath] = field(default_factory=list)
    moved: dict[KeyPath, KeyPath] = field(default_factory=dict)
    copies: Mapping[KeyPath, Copy] = field(default_factory=dict)

    def where(self, key: KeyPath) -> str:
        """Return where a key stands, or its nearest enclosing one; of a point of a sweep, where its value does."""
        copy = self.copies.get(key[:2])
        key = copy.written(key) if copy is not None else key
        key = (*self.moved.get(key[:2], key[:2]), *key[2:])
        nodes = along(self.tree, key)
        for path in reversed(self.overridden):
            if shared(path, key) >= min(len(nodes), len(path)):
                return f"--set {'.'.join(map(str, path))}"
        return nodes[-1].where

    def problem(self, key: KeyPath, what: str) -> Problem:
        """Return a problem at the line of a key."""
        where = self.where(key)
        return Problem(where, what.removeprefix(f"{where.removeprefix('--set ')}: "))  # that names the key already


@dataclass(frozen=True)
class RecipeFile:
    """A valid recipe, its file, and where each of its keys stands.

    `recipe` is what is carried out: every point of a sweep is a variant, with regions of its own where it needs
    them. `as_written` still has the sweeps, and loading it again gives the same `recipe`. `sweeps` are named by the
    variants that have them.
    """

    path: Path
    recipe: Recipe
    as_written: Recipe
    sweeps: Mapping[str, Sweep]
    places: Places

    def problem(self, key: KeyPath, what: str) -> Problem:
        """Return a problem at the line of a key."""
        return self.places.problem(key, what)

    def written_name(self, region: str) -> str:
        """Return the name in the recipe of a region, which may be a copy of it at a point of a sweep."""
        copy = self.places.copies.get(("regions", region))
        return copy.origin if copy is not None else region


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> RecipeFile:
    """Read a recipe and apply `PATH=VALUE` overrides (values are YAML).

    Raises:
        RecipeError: every problem found.
        InputError: there is no such file, or an override is malformed.
    """
    tree, problems = read_yaml(_text(path), lambda line: f"{path}:{line}")
    data = plain(tree) if tree.value is not None else {}
    if not isinstance(data, dict):
        raise RecipeError([Problem(f"{path}:1", "a recipe is a mapping that begins with `version: 1`")])
    places = Places(tree)
    for override in overrides:
        data = _overridden(data, override, places, problems)
    data = _named_tokens(data, places, problems)
    written = _validated(data, places, problems)
    expansion = expand(written)
    places.copies = expansion.copies
    regions, variants = expansion.regions, expansion.variants
    _refuse(places, chain(expansion.problems, dangling(regions, variants, regions)))
    _refuse(places, unmet(written.verify, variants) if written.verify is not None else ())
    recipe = written.model_copy(update={"regions": regions, "variants": variants})
    return RecipeFile(path, recipe, written, expansion.sweeps, places)


def _validated(data: Mapping[str, Any], places: Places, problems: Iterable[Problem]) -> Recipe:
    """Validate a recipe, as it is written.

    Raises:
        RecipeError: the problems that there are, what the schema objects to, and names that refer to nothing.
    """
    errors: list[tuple[KeyPath, ValidationError]] = []
    # One by one, so that names are looked up in all of them, also where some are not valid.
    given = {group: data[group] for group in ("regions", "variants") if isinstance(data.get(group), dict)}
    regions = _valid(RegionSpec, "regions", given, errors)
    variants = _valid(VariantSpec, "variants", given, errors)
    valid = {group: regions if group == "regions" else variants for group in given}
    recipe = None
    try:
        recipe = Recipe.model_validate({**data, **valid})
    except ValidationError as error:
        errors.append(((), error))
    known = given.get("regions", {})
    wrong = chain(
        *(chain(objections(error, data, key), unknown_names(data, key, known)) for key, error in errors),
        dangling(regions, variants, known),
        unusable_names(known, given.get("variants", ())),
    )
    _refuse(places, wrong, problems)
    return present(recipe)


Spec = TypeVar("Spec", bound=Model)


def _valid(
    schema: type[Spec], group: str, given: Mapping[str, Any], errors: list[tuple[KeyPath, ValidationError]]
) -> dict[str, Spec]:
    """Return the valid ones of a recipe's regions, or variants; `errors` gains those of the others."""
    specs = {}
    for name, value in given.get(group, {}).items():
        try:
            specs[name] = schema.model_validate(value)
        except ValidationError as error:
            errors.append(((group, name), error))
    return specs


def _named_tokens(data: dict[str, Any], places: Places, problems: list[Problem]) -> dict[str, Any]:
    """Give a region of its own to every variant whose `freeze:` or `train_only:` gives tokens in place of a name."""
    variants = data.get("variants")
    for variant, spec in variants.items() if isinstance(variants, dict) else ():
        for polarity in ("freeze", "train_only"):
            region = spec.get(polarity) if isinstance(spec, dict) else None
            regions, name, key = data.get("regions", {}), f"{variant}-tokens", ("variants", variant, polarity)
            if not isinstance(region, dict) or not isinstance(regions, dict):
                continue
            if region.keys() != {"tokens"}:
                problems.append(places.problem(key, f"{polarity}: a region's name, or `{{tokens: [...]}}` alone"))
            elif name in regions:
                problems.append(places.problem(key, f"region '{name}' is there already; rename it"))
            places.moved["regions", name] = key
            data = with_value(with_value(data, ("regions", name), region), key, name)
    return data


def corpus_from(text: str, where: str) -> str | dict[str, str | TextSpec]:
    """Read a corpus as `corpus:` of a recipe says one, such as `builtin:udhr30` or `{ar: ar.txt}`.

    Raises:
        InputError: it is neither a name nor a mapping of languages; `where` says where it stands.
    """
    try:
        node, problems = read_yaml(text, lambda line: where)
        _refuse_all(problems)
        corpus: str | dict[str, str | TextSpec] = TypeAdapter(str | dict[str, str | TextSpec]).validate_python(
            plain(node)
        )
    except (NotYaml, ValidationError):
        raise InputError(
            f"{where} {_shortened(text)}: write builtin:udhr30, or a mapping of languages such as "
            "'{ar: texts/ar.txt, fr: texts/fr.txt}'"
        ) from None
    return corpus


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(LONGEST + 1)
        # One that is too long is refused by its length.
        return content.decode(errors="strict" if len(content) <= LONGEST else "replace")
    except OSError as error:
        raise InputError(f"{path}: cannot read the recipe ({error.strerror})") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: not a recipe: the file is not UTF-8 text") from None
    except ValueError as error:
        raise InputError(f"cannot read the recipe {str(path)!r} ({error})") from None


def _overridden(data: dict[str, Any], override: str, places: Places, problems: list[Problem]) -> dict[str, Any]:
    """Apply one `PATH=VALUE`; what is wrong with the value although it can be read is added to `problems`."""
    dotted, equals, text = override.partition("=")
    if not equals or not dotted:
        raise InputError(f"--set {_shortened(override)}: write --set PATH=VALUE, for example --set verify.tokens=128")
    where, key = f"--set {dotted}", dotted_path(dotted)
    _refuse_unknown_name(data, where, key)
    value: Any = text  # where it is no YAML, such as a pattern of names, `*.weight`
    with suppress(NotYaml):
        node, wrong = read_yaml(text, lambda line: where)
        value = plain(node)
        problems += wrong
    try:
        if len(key) > DEEPEST:
            raise LookupError
        data = with_value(data, key, value)
    except LookupError:
        raise InputError(f"--set {_shortened(override)}: the recipe has no such place") from None
    places.overridden.append(key)
    return data


def _refuse_unknown_name(data: Mapping[str, Any], where: str, key: KeyPath) -> None:
    """A key of a region or variant that is not there is a misspelt name; a new one is given whole."""
    if len(key) < 3 or key[0] not in ("regions", "variants"):
        return
    kind, name, known = str(key[0]), str(key[1]), data.get(str(key[0]), {})
    if isinstance(known, dict) and name not in known:
        raise InputError(f"{where}: no {kind.removesuffix('s')} '{name}'{did_you_mean(name, known)}")


def _refuse(places: Places, wrong: Iterable[tuple[KeyPath, str]], problems: Iterable[Problem] = ()) -> None:
    """Refuse a recipe if there is something wrong with it; of very many problems not all are looked for."""
    _refuse_all([*problems, *(places.problem(key, what) for key, what in islice(wrong, MOST_PROBLEMS + 1))])


def _refuse_all(problems: Sequence[Problem]) -> None:
    if not problems:
        return
    unique = sorted(dict.fromkeys(problems), key=lambda problem: line_number(problem.where))
    shown = [replace(problem, what=_shortened(problem.what)) for problem in unique[:MOST_PROBLEMS]]
    if len(unique) > len(shown):
        shown.append(Problem(unique[MOST_PROBLEMS].where, "and more, from here on"))
    raise RecipeError(shown)


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST_PROBLEM else f"{text[:_LONGEST_PROBLEM]} ..."
