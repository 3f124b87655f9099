"""A recipe's file: composed, expanded and validated once, with all its problems reported at once.

Text becomes a tree that knows its lines, `--set` puts other values into it, the schema reads it and names are looked
up; then sweeps add their points. Later stages use `RecipeFile.problem` to point at the same lines.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from surgeon.errors import InputError, Problem, RecipeError, did_you_mean
from surgeon.recipe.corpus import TextSpec
from surgeon.recipe.expected import unmeasured
from surgeon.recipe.faults import faults
from surgeon.recipe.fields import Model
from surgeon.recipe.inline_regions import named
from surgeon.recipe.lines import KeyPath, Node, dotted_path, line_number, nearest, plain, replaced
from surgeon.recipe.plain_yaml import DEEPEST, LONGEST, NotYaml, read_yaml
from surgeon.recipe.references import dangling, expectations
from surgeon.recipe.schema import Recipe, RegionSpec, VariantSpec
from surgeon.recipe.sweeps import Expansion, Sweep, expand

_MOST_PROBLEMS = 100  # that are shown
_LONGEST_PROBLEM = 1000  # characters


@dataclass(frozen=True)
class RecipeFile:
    """A valid recipe, its file, and where each of its keys stands.

    `recipe` is what is carried out: every point of a sweep is a variant, with regions of its own where it needs
    them. `as_written` still has the sweeps, and loading it again gives the same `recipe`.
    """

    path: Path
    recipe: Recipe
    tree: Node
    as_written: Recipe
    expansion: Expansion

    @property
    def sweeps(self) -> Mapping[str, Sweep]:
        """The sweeps by the variant that has them."""
        return self.expansion.sweeps

    def where(self, key: KeyPath) -> str:
        """Return where a key stands, or its nearest enclosing one; of a point of a sweep, where its value does."""
        return self.expansion.where(key) or nearest(self.tree, key).where

    def problem(self, path: KeyPath, what: str) -> Problem:
        """Make a problem that points at the line of `path`."""
        return Problem(self.where(path), what)


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> RecipeFile:
    """Read a recipe and apply `PATH=VALUE` overrides (values are YAML).

    Raises:
        RecipeError: every problem found.
        InputError: there is no such file, or an override is malformed.
    """
    tree, problems = read_yaml(_text(path), lambda line: f"{path}:{line}")
    if tree.value is None:
        tree = Node({}, tree.where)
    if not isinstance(tree.value, Mapping):
        raise RecipeError([Problem(f"{path}:1", "a recipe is a mapping that begins with `version: 1`")])
    for override in overrides:
        tree = _overridden(tree, override, problems)
    tree = named(tree, problems)
    written = _validated(Recipe, plain(tree), lambda key: nearest(tree, key).where, problems)
    return _expanded(path, written, tree)


def _expanded(path: Path, written: Recipe, tree: Node) -> RecipeFile:
    """Add the points of sweeps, and look at the expectations, which may name them."""
    problems: list[Problem] = []
    data, expansion = plain(tree), expand(tree, problems)
    file = RecipeFile(path, written, tree, written, expansion)
    if expansion.variants or problems:
        added = {"regions": {**data.get("regions", {}), **expansion.regions}, "variants": expansion.variants}
        points = _validated(_Points, added, file.where, problems, expansion.origins)
        carried_out = [
            (point, points.variants[point] if name in expansion.sweeps else variant)
            for name, variant in written.variants.items()
            for point in (expansion.sweeps[name].points if name in expansion.sweeps else (name,))
        ]
        recipe = written.model_copy(update={"regions": points.regions, "variants": dict(carried_out)})
        file = RecipeFile(path, recipe, tree, written, expansion)
    wrong = chain(expectations(data, file.recipe.variants), unmeasured(file.recipe.verify))
    _refuse([file.problem(*found) for found in islice(wrong, _MOST_PROBLEMS + 1)])
    return file


class _Points(Model):
    """What sweeps add, with the regions that are written."""

    regions: dict[str, RegionSpec]
    variants: dict[str, VariantSpec]


Read = TypeVar("Read", bound=Model)


def _validated(
    schema: type[Read],
    data: Any,
    where: Callable[[KeyPath], str],
    problems: list[Problem],
    origins: Mapping[KeyPath, KeyPath] = MappingProxyType({}),
) -> Read:
    """Validate a recipe, or the points of its sweeps; for `origins` see `faults`.

    Raises:
        RecipeError: the problems that there are, what the schema objects to, and names that refer to nothing.
    """
    found = islice(dangling(data), _MOST_PROBLEMS + 1)
    problems = [*problems, *(Problem(where(key), what) for key, what in found)]
    try:
        valid = schema.model_validate(data)
    except ValidationError as error:
        _refuse([*problems, *faults(error, data, where, _MOST_PROBLEMS + 1, origins)])
        raise AssertionError("a recipe that the schema refuses has a problem") from error
    _refuse(problems)
    return valid


def corpus_from(text: str, where: str) -> str | dict[str, str | TextSpec]:
    """Read a corpus as `corpus:` of a recipe says one, such as `builtin:udhr30` or `{ar: ar.txt}`.

    Raises:
        InputError: it is neither a name nor a mapping of languages; `where` says where it stands.
    """
    try:
        node, problems = read_yaml(text, lambda line: where)
        _refuse(problems)
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
        return (
            content.decode() if len(content) <= LONGEST else content.decode(errors="replace")
        )  # refused by its length
    except OSError as error:
        raise InputError(f"{path}: cannot read the recipe ({error.strerror})") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: not a recipe: the file is not UTF-8 text") from None
    except ValueError as error:
        raise InputError(f"cannot read the recipe {str(path)!r} ({error})") from None


def _overridden(tree: Node, override: str, problems: list[Problem]) -> Node:
    """Apply one `PATH=VALUE`; what is wrong with the value although it can be read is added to `problems`."""
    dotted, equals, text = override.partition("=")
    if not equals or not dotted:
        raise InputError(f"--set {_shortened(override)}: write --set PATH=VALUE, for example --set verify.tokens=128")
    where, key = f"--set {dotted}", dotted_path(dotted)
    _refuse_unknown_name(tree, where, key)
    try:
        value, found = read_yaml(text, lambda line: where)
        problems += found
    except NotYaml:
        value = Node(text, where)  # such as a pattern of names, `*.weight`
    result = replaced(tree, key, value) if len(key) <= DEEPEST else None
    if result is None:
        raise InputError(f"--set {_shortened(override)}: the recipe has no such place")
    return result


def _refuse_unknown_name(tree: Node, where: str, key: KeyPath) -> None:
    """A key of a region or variant that is not there is a misspelt name; a new one is given whole."""
    if len(key) < 3 or key[0] not in ("regions", "variants"):
        return
    kind, name, known = str(key[0]), str(key[1]), tree.mapping(str(key[0]))
    if name not in known:
        raise InputError(f"{where}: no {kind.removesuffix('s')} '{name}'{did_you_mean(name, known)}")


def _refuse(problems: Sequence[Problem]) -> None:
    if not problems:
        return
    unique = sorted(dict.fromkeys(problems), key=lambda problem: line_number(problem.where))
    shown = [replace(problem, what=_shortened(problem.what)) for problem in unique[:_MOST_PROBLEMS]]
    if len(unique) > len(shown):
        shown.append(Problem(unique[_MOST_PROBLEMS].where, "and more, from here on"))
    raise RecipeError(shown)


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST_PROBLEM else f"{text[:_LONGEST_PROBLEM]} ..."
