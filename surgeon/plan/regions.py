"""What the regions of a recipe will be: their tensors, and at most how many entries; told from headers alone."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from graphlib import TopologicalSorter
from typing import NoReturn

import numpy as np

from surgeon.anatomy.anatomy import anatomy_of
from surgeon.anatomy.scope import Scope, scope, unknown_kinds
from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.checkpoint.naming import SELECTORS, Place
from surgeon.checkpoint.sources import local_file
from surgeon.checkpoint.storage import TensorInfo
from surgeon.errors import Problem, RegionError, did_you_mean
from surgeon.operations.edits import check_regions_fit
from surgeon.recipe.lines import KeyPath
from surgeon.recipe.reading import RecipeFile
from surgeon.recipe.schema import ORIGINS, ControlSpec, DimensionsSpec, EntriesSpec, RegionSpec, SelectSpec
from surgeon.recipe.score_specs import ActivationScore, ScoreSpec, WandaScore
from surgeon.region.algebra import parse
from surgeon.region.coordinates import entry, lines
from surgeon.region.dimensions import hidden_size
from surgeon.region.importers import load_masks, load_neurons
from surgeon.region.region import Indices, Mask, Region, encode_indices
from surgeon.region.select import entry_count_in_outputs
from surgeon.region.units import Parts, most_entries, parts_of, unit_sizes


@dataclass(frozen=True)
class RegionPlan:
    """A region to be made: its tensors, and at most how many of their entries it will select."""

    name: str
    tensors: tuple[TensorInfo, ...]
    places: Mapping[str, Place]
    select: SelectSpec | None
    score: ScoreSpec | None
    entries: int
    exact: bool
    known: Region | None  # where it needs no score and no other region
    spec: RegionSpec
    parts: Mapping[str, Parts] = field(default_factory=dict)  # by tensor, where whole units are selected

    @property
    def origin(self) -> str:
        """How the region is made: top, bottom, random, or a key of the recipe such as file or combine."""
        if self.select is not None:
            return self.select.kind
        return next(name for name in ORIGINS if getattr(self.spec, name) is not None)

    @property
    def seed(self) -> int | None:
        """The seed that its entries are drawn with; None if they are not drawn."""
        if self.select is not None:
            return self.select.seed if self.select.kind == "random" else None
        if self.spec.control is not None:
            return self.spec.control.seed if self.spec.control.draw == "random" else None
        return self.spec.dimensions.seed if self.spec.dimensions is not None and self.spec.dimensions.random else None

    @property
    def numel(self) -> int:
        """Entries of all tensors in scope."""
        return sum(info.numel for info in self.tensors)

    @property
    def by_language(self) -> bool:
        """True if what it selects depends on each language's own scores, and not only on their sum."""
        return self.select is not None and (self.select.monolingual or self.select.specific) is not None

    def groups(self, tensors: Sequence[TensorInfo] | None = None) -> list[list[TensorInfo]]:
        """Tensors, all of the region's or some of them, that share one cut: each alone, by layer, or all together."""
        tensors = self.tensors if tensors is None else tensors
        kind = self.select.scope if self.select else "tensor"
        if kind == "global":
            return [list(tensors)]
        found: dict[object, list[TensorInfo]] = {}
        for info in tensors:
            layer = self.places[info.name].layer if kind == "layer" else None
            alone = self.parts[info.name].group if self.parts else info.name
            found.setdefault(alone if layer is None else layer, []).append(info)
        return list(found.values())


def plan_regions(file: RecipeFile, checkpoint: Checkpoint, problems: list[Problem]) -> dict[str, RegionPlan]:
    """Plan all regions, each after those it is made from; what does not fit the model is added to `problems`."""
    specs = file.recipe.regions
    plans: dict[str, RegionPlan] = {}
    for name in TopologicalSorter({name: parts(spec) for name, spec in specs.items()}).static_order():
        plans[name] = _plan_region(file, checkpoint, name, plans, problems)
    return {name: plans[name] for name in specs}


def parts(spec: RegionSpec) -> list[str]:
    """Return the regions that a region is made from."""
    if spec.combine is not None:
        return list(parse(spec.combine).names())
    return [made_of.of for made_of in (spec.dimensions, spec.control) if made_of is not None]


def _plan_region(
    file: RecipeFile, checkpoint: Checkpoint, name: str, plans: Mapping[str, RegionPlan], problems: list[Problem]
) -> RegionPlan:
    spec = file.recipe.regions[name]
    if spec.select is not None:
        return _plan_selected(file, checkpoint, name, spec, problems)
    if spec.combine is not None:
        whole = _plan_combined(checkpoint, name, spec, {part: plans[part] for part in parts(spec)})
    elif spec.dimensions is not None:
        of = plans[spec.dimensions.of]
        problems.extend(_too_many(file, checkpoint, name, of, spec.dimensions))
        whole = _plan_dimensions(name, spec, of, spec.dimensions)
    elif spec.control is not None:
        whole = _plan_control(file, name, spec, plans[spec.control.of], spec.control, problems)
    elif spec.entries is not None:
        whole = _plan_entries(file, checkpoint, name, spec, problems)
    else:
        whole = _plan_import(file, checkpoint, name, spec, problems)
    return _narrowed(file, checkpoint, whole, problems)


def _plan_selected(
    file: RecipeFile, checkpoint: Checkpoint, name: str, spec: RegionSpec, problems: list[Problem]
) -> RegionPlan:
    assert spec.select is not None
    score = file.recipe.score_of(name)
    chosen = scope(checkpoint, spec.include, spec.exclude, spec.layers)
    tensors = tuple(info for info in chosen.tensors if scorable(score, info, chosen.places[info.name]))
    problems += _misnamed(file, checkpoint, name, chosen)
    parts = _parts(checkpoint, spec.select, tensors, chosen)
    if spec.select.unit != "entry":
        tensors = tuple(info for info in tensors if info.name in parts)
    plan = RegionPlan(name, tensors, chosen.places, spec.select, score, 0, True, None, spec, parts)
    entries, exact = _selected_count(plan, spec.select)
    if entries == 0 and not any(problem.where == file.problem(("regions", name), "").where for problem in problems):
        what = (
            f"region '{name}' selects nothing: no tensor of the model is in its scope{_unknown(checkpoint)}"
            if not chosen.tensors
            else f"region '{name}' selects nothing: {_unscored(score, spec.select)}"
            if not tensors
            else f"region '{name}' selects nothing: {spec.select.fraction or 0:g} of each tensor is less than one "
            f"{spec.select.unit}"
        )
        problems.append(file.problem(("regions", name), what))
    exact &= not plan.by_language and spec.select.at_least is None
    return replace(plan, entries=entries, exact=exact)


def _parts(
    checkpoint: Checkpoint, select: SelectSpec, tensors: Sequence[TensorInfo], chosen: Scope
) -> dict[str, Parts]:
    found = {
        info.name: parts_of(select.unit, info.name, info.shape, chosen.places[info.name], checkpoint.config)
        for info in tensors
    }
    return {name: part for name, part in found.items() if part is not None}


def _unscored(score: ScoreSpec | None, select: SelectSpec) -> str:
    """Say why no tensor in scope can be selected from."""
    if isinstance(score, WandaScore):
        return "wanda scores the matrices of linear layers only"
    if isinstance(score, ActivationScore) and select.unit == "entry":
        where = "down matrices" if score.measure == "spike" else "neurons of the feed-forward"
        return f"activation ({score.measure}) scores {where} only, one expert's tensors by themselves"
    return f"none of its tensors has parts of a {select.unit} that can be told"


def _unknown(checkpoint: Checkpoint) -> str:
    """Say which tensors' roles are not known, for those who miss them."""
    kinds = unknown_kinds(checkpoint)
    if not kinds:
        return ""
    shown = ", ".join(kinds[:4]) + (", ..." if len(kinds) > 4 else "")
    return f"; the roles of {len(kinds)} kinds of tensors are unknown ({shown}): name them in include by such patterns"


def _misnamed(file: RecipeFile, checkpoint: Checkpoint, name: str, chosen: Scope) -> Iterator[Problem]:
    """Find the selectors of include and exclude that name nothing."""
    spec = file.recipe.regions[name]
    for key, selectors in (("include", spec.include), ("exclude", spec.exclude)):
        for i, selector in enumerate(selectors):
            if selector in chosen.unmatched and not (key == "exclude" and selector in SELECTORS):
                yield _unmatched(file, checkpoint, ("regions", name, key, i), selector)


def excludes_nothing(checkpoint: Checkpoint, region: RegionPlan) -> list[str]:
    """Return the roles that a region excludes and that the model does not have, which changes nothing."""
    spec = region.spec
    unmatched = scope(checkpoint, spec.include, spec.exclude, spec.layers).unmatched if spec.exclude else ()
    return [selector for selector in spec.exclude if selector in unmatched and selector in SELECTORS]


def _narrowed(file: RecipeFile, checkpoint: Checkpoint, whole: RegionPlan, problems: list[Problem]) -> RegionPlan:
    """Leave out the tensors that include, exclude and layers leave out; without any, nothing."""
    spec = whole.spec
    if not spec.include and not spec.exclude and spec.layers is None:
        return whole
    chosen = scope(checkpoint, spec.include or ["*"], spec.exclude, spec.layers)
    problems += _misnamed(file, checkpoint, whole.name, chosen)
    tensors = tuple(info for info in whole.tensors if info.name in chosen.places)
    known = None if whole.known is None else whole.known.only(info.name for info in tensors)
    entries = known.entries if known is not None else min(whole.entries, sum(info.numel for info in tensors))
    if entries == 0 and whole.entries > 0 and not problems:
        problems.append(file.problem(("regions", whole.name), f"region '{whole.name}' selects nothing in its scope"))
    return replace(whole, tensors=tensors, entries=entries, known=known)


def scorable(score: ScoreSpec | None, info: TensorInfo, where: Place) -> bool:
    """True if a score is defined for a tensor.

    Wanda's is for matrices that multiply inputs, that of activations for neurons of the feed-forward, others' for all.
    """
    if isinstance(score, ActivationScore):
        if score.measure == "spike":
            return where.role == "mlp.down" and len(info.shape) == 2
        return where.role.startswith("mlp.") and parts_of("neuron", info.name, info.shape, where, {}) is not None
    return not isinstance(score, WandaScore) or (len(info.shape) > 1 and where.matrix and where.role != "embed")


def _selected_count(plan: RegionPlan, select: SelectSpec) -> tuple[int, bool]:
    """Return at most how many entries are selected, and whether it is exactly so many."""
    if plan.parts:
        cuts = []
        for group in plan.groups():
            sizes = list(unit_sizes(plan.parts[info.name] for info in group).values())
            wanted = select.wanted(sum(int(np.count_nonzero(one)) for one in sizes))
            cuts.append(most_entries([one[one > 0] for one in sizes], wanted))
        return sum(count for count, _ in cuts), all(exact for _, exact in cuts)
    if select.scope != "output":
        return sum(select.wanted(sum(info.numel for info in group)) for group in plan.groups()), True
    axes = {info.name: plan.places[info.name].output_axis for info in plan.tensors}
    fraction = select.fraction or 0.0
    return sum(entry_count_in_outputs(info.shape, fraction, axes[info.name]) for info in plan.tensors), True


def _unmatched(file: RecipeFile, checkpoint: Checkpoint, key: KeyPath, selector: str) -> Problem:
    what = f"'{selector}' names no role and no tensor of {checkpoint.source.name}"
    if selector in SELECTORS:
        return file.problem(key, f"the model {checkpoint.source.name} has no tensor of role '{selector}'")
    return file.problem(key, what + did_you_mean(selector, [*SELECTORS, *checkpoint.tensors]))


def _plan_import(
    file: RecipeFile, checkpoint: Checkpoint, name: str, spec: RegionSpec, problems: list[Problem]
) -> RegionPlan:
    key: KeyPath = ("regions", name, "neurons" if spec.neurons is not None else "file")
    region = Region({}, no_masks)
    try:
        region = _imported(checkpoint, spec)
        check_regions_fit(checkpoint, {name: region})
        if region.entries == 0:
            problems.append(file.problem(key, f"region '{name}': what the file holds is empty"))
    except RegionError as error:
        problems.append(file.problem(key, str(error)))
        region = Region({}, no_masks)
    return _known(checkpoint, name, spec, region)


def _imported(checkpoint: Checkpoint, spec: RegionSpec) -> Region:
    if spec.neurons is not None:
        chosen = load_neurons(local_file(spec.neurons.file), spec.neurons.language, checkpoint)
        return Region.from_indices(chosen, _shapes([checkpoint.info(name) for name in chosen]))
    path = local_file(str(spec.file))
    return load_masks(path) if path.is_dir() else Region.load(path)


def _plan_entries(
    file: RecipeFile, checkpoint: Checkpoint, name: str, spec: RegionSpec, problems: list[Problem]
) -> RegionPlan:
    items: dict[str, list[EntriesSpec]] = {}
    for i, item in enumerate(spec.entries or ()):
        key: KeyPath = ("regions", name, "entries", i)
        tensors = scope(checkpoint, [item.tensor]).tensors
        if not tensors:
            problems.append(_unmatched(file, checkpoint, (*key, "tensor"), item.tensor))
        for info in tensors:
            try:
                _entries(info, item)
            except ValueError as error:
                problems.append(file.problem(key, f"tensor '{info.name}': {error}"))
                break
            items.setdefault(info.name, []).append(item)

    def mask(tensor: str) -> Mask:  # made when it is asked for: a sweep over many columns keeps none of them
        info = checkpoint.info(tensor)
        return encode_indices(np.unique(np.concatenate([_entries(info, item) for item in items[tensor]])), info.shape)

    return _known(checkpoint, name, spec, Region(_shapes([checkpoint.info(tensor) for tensor in items]), mask))


def _entries(info: TensorInfo, item: EntriesSpec) -> Indices:
    if item.index is not None:
        return entry(info.shape, item.index)
    return lines(info.shape, item.rows, item.columns)


def _known(checkpoint: Checkpoint, name: str, spec: RegionSpec, region: Region) -> RegionPlan:
    tensors = tuple(checkpoint.tensors[tensor] for tensor in region)
    places = _places(checkpoint, tensors)
    return RegionPlan(name, tensors, places, None, None, region.entries, True, region, spec)


def _plan_combined(checkpoint: Checkpoint, name: str, spec: RegionSpec, parts: Mapping[str, RegionPlan]) -> RegionPlan:
    assert spec.combine is not None
    shapes = {label: Region(_shapes(part.tensors), no_masks) for label, part in parts.items()}
    tensors = tuple(checkpoint.tensors[tensor] for tensor in parse(spec.combine).evaluate(shapes))
    places = _places(checkpoint, tensors)
    numel = sum(info.numel for info in tensors)
    most = numel if "~" in spec.combine else min(numel, sum(part.entries for part in parts.values()))
    return RegionPlan(name, tensors, places, None, None, most, False, None, spec)


def _plan_dimensions(name: str, spec: RegionSpec, of: RegionPlan, dimensions: DimensionsSpec) -> RegionPlan:
    count = dimensions.rows + dimensions.columns + dimensions.residual
    most = sum(min(info.numel, count * max(info.shape, default=1)) for info in of.tensors)
    return RegionPlan(name, of.tensors, of.places, None, None, most, False, None, spec)


def _plan_control(
    file: RecipeFile, name: str, spec: RegionSpec, of: RegionPlan, control: ControlSpec, problems: list[Problem]
) -> RegionPlan:
    score = of.score if control.draw == "bottom" else None
    if control.draw == "bottom" and score is None:
        what = f"region '{control.of}' is not selected by a score: `draw: bottom` needs one"
        problems.append(file.problem(("regions", name, "control", "draw"), what))
    most = of.entries if control.matched == "count" else of.numel
    return RegionPlan(name, of.tensors, of.places, None, score, most, False, None, spec)


def _too_many(
    file: RecipeFile, checkpoint: Checkpoint, name: str, of: RegionPlan, dimensions: DimensionsSpec
) -> Iterator[Problem]:
    """Find numbers of dimensions that no tensor has; a random control needs as many others beside them."""
    shapes = _shapes(of.tensors)
    there = {
        "rows": max((math.prod(shape[:-1]) if len(shape) > 1 else shape[0] for shape in shapes.values()), default=0),
        "columns": max((shape[-1] for shape in shapes.values() if len(shape) > 1), default=0),
        "residual": hidden_size(shapes, _places(checkpoint, of.tensors)) or 0,
    }
    for key, most in there.items():
        asked = getattr(dimensions, key)
        if shapes and asked * (2 if dimensions.random else 1) > most:
            lines = "residual dimensions" if key == "residual" else key
            beside = " at random beside the fullest" if dimensions.random else ""
            what = f"{asked} {lines}{beside}: the tensors of region '{of.name}' have at most {most}"
            yield file.problem(("regions", name, "dimensions", key), what)


def _places(checkpoint: Checkpoint, tensors: Sequence[TensorInfo]) -> dict[str, Place]:
    found = anatomy_of(checkpoint).places
    return {info.name: found[info.name] for info in tensors}


def _shapes(tensors: Sequence[TensorInfo]) -> dict[str, tuple[int, ...]]:
    return {info.name: info.shape for info in tensors}


def no_masks(name: str) -> NoReturn:
    """Stand in for a region's masks where only its shapes are known."""
    raise AssertionError("a plan reads no masks")
