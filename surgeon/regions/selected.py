"""`select:` a share, a number, or all from a bound: the entries or units of highest or lowest score, or at random."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from surgeon.anatomy.scope import counted, unknown_kinds
from surgeon.anatomy.scope import scope as reach_of
from surgeon.checkpoint.address import last_part
from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.checkpoint.fingerprint import tensor_hashes
from surgeon.checkpoint.naming import Place
from surgeon.checkpoint.storage import TensorInfo
from surgeon.errors import present
from surgeon.region.mask import Indices, Mask, encode_indices
from surgeon.region.region import Region
from surgeon.region.select import select_random
from surgeon.region.units import Parts, most_entries, parts_of, unit_sizes
from surgeon.regions.base import Making, Planning, Provenance, RegionKind, RegionPlan
from surgeon.regions.cut import Cut, UnitCut, region_from
from surgeon.regions.outlines import misnamed
from surgeon.regions.scopes import scope_of
from surgeon.regions.share import Share

if TYPE_CHECKING:
    from surgeon.recipe.schema import RegionSpec
    from surgeon.scores.base import Score


class Select(Share, RegionKind):
    """Which entries or units of the scored tensors form the region: by one of top, bottom, random, count, at_least."""

    key: ClassVar[str] = "select"
    says_itself: ClassVar[bool] = True
    description: ClassVar[str] = "how many entries, and which"
    selects_itself: ClassVar[bool] = True

    @property
    def origin(self) -> str:
        """The end that is selected from, or random."""
        return "random" if self.random is not None else self.end

    @property
    def drawn_with(self) -> int | None:
        """The seed of a random selection."""
        return None if self.random is None else self.seed

    def outline(self, planning: Planning, name: str, spec: RegionSpec, plans: Mapping[str, RegionPlan]) -> RegionPlan:
        """Tell its tensors, those in scope that have scores, and how many entries are selected of them."""
        checkpoint, score = planning.checkpoint, planning.file.recipe.score_of(name)
        reach = reach_of(checkpoint, spec.include, spec.exclude, spec.layers)
        tensors = [info for info in reach.tensors if score is None or score.can_score(info, reach.places[info.name])]
        limits = score.limits if score is not None else None
        leaves_out = _missing(reach.tensors, {info.name for info in tensors}, limits or "no score of this kind")
        before = len(planning.problems)
        planning.problems.extend(misnamed(planning, name, spec, reach))
        parts: dict[str, Parts] = {}
        if self.unit != "entry":
            parts = self._parts(checkpoint, tensors, reach.places)
            leaves_out += _missing(tensors, parts, f"no {self.unit} has a part there")
            tensors = [info for info in tensors if info.name in parts]
        plan = RegionPlan(name, spec, tuple(tensors), reach.places, 0, True, score, None, parts, leaves_out)
        entries, exact = self._most(plan)
        if entries == 0 and len(planning.problems) == before:
            nothing = self._nothing(checkpoint, score, bool(reach.tensors), bool(tensors))
            planning.problem(("regions", name), f"region '{name}' selects nothing: {nothing}")
        return replace(plan, entries=entries, exact=exact and self.own is None and self.at_least is None)

    def _parts(
        self, checkpoint: Checkpoint, tensors: Iterable[TensorInfo], places: Mapping[str, Place]
    ) -> dict[str, Parts]:
        """Return which parts of units the tensors hold that hold some."""
        parts = {
            info.name: parts_of(self.unit, info.name, info.shape, places[info.name], checkpoint.config)
            for info in tensors
        }
        return {name: part for name, part in parts.items() if part is not None}

    def kept(self, plans: Mapping[str, RegionPlan]) -> bool:
        """True, also for a random one."""
        return True

    def make(self, making: Making, plan: RegionPlan) -> Region:
        """Select by the scores, or draw."""
        if self.random is not None:
            return self._drawn(plan)
        return region_from(making.stream(plan), Cut([plan], present(plan.score).labels))

    def _drawn(self, plan: RegionPlan) -> Region:
        """Return a random selection, whose masks are made group by group as they are asked for."""
        groups = plan.groups()
        group_of = {info.name: i for i, group in enumerate(groups) for info in group}

        @lru_cache(maxsize=1)  # asked for in order, so one group at a time is enough
        def drawn(i: int) -> Mapping[str, Mask]:
            chosen = self._draw(plan, groups[i])
            return {info.name: encode_indices(chosen[info.name], info.shape) for info in groups[i]}

        order = [info for group in groups for info in group]
        return Region({info.name: info.shape for info in order}, lambda name: drawn(group_of[name])[name])

    def _draw(self, plan: RegionPlan, group: Sequence[TensorInfo]) -> Mapping[str, Indices]:
        if plan.parts:
            return UnitCut(self, plan.parts, plan.drawn_as).choose(group)
        label = f"{plan.drawn_as}:{group[0].name}"  # by the region's name, so that two draws are independent
        return select_random([(info.name, info.numel) for info in group], self.random or 0.0, self.seed, label)

    def _most(self, plan: RegionPlan) -> tuple[int, bool]:
        """Return at most how many entries are selected, and whether it is exactly so many."""
        if not plan.parts:
            scope = scope_of(self)
            return sum(scope.count(self, group, plan.places) for group in plan.groups()), True
        cuts = []
        for group in plan.groups():
            sizes = list(unit_sizes(plan.parts[info.name] for info in group).values())
            wanted = self.wanted(sum(int(np.count_nonzero(one)) for one in sizes))
            cuts.append(most_entries([one[one > 0] for one in sizes], wanted))
        return sum(count for count, _ in cuts), all(exact for _, exact in cuts)

    def _nothing(self, checkpoint: Checkpoint, score: Score | None, in_scope: bool, scored: bool) -> str:
        """Say why nothing is selected."""
        if not in_scope:
            return f"no tensor of the model is in its scope{_unknown(checkpoint)}"
        if scored:
            return f"{self.fraction or 0:g} of each tensor is less than one {self.unit}"
        if score is not None and score.limits is not None and self.unit == "entry":
            return score.limits
        return f"none of its tensors has parts of a {self.unit} that can be told"

    def selects(self) -> str:
        """Return the end, the amount, and of what."""
        own = f", only {self.own}" if self.own else ""
        return f"{self.origin} {self.amount} per {self.scope}{own}"

    def described(self, score: Score | None, named: Callable[[str], str]) -> list[str]:
        """Return the amount and the score, and whose entries they are."""
        share = f"{self.amount} of {scope_of(self).of}"
        if self.random is not None or score is None:
            lines = [f"{share} at random, seed {self.seed}"]
        else:
            texts = score.on_text
            scored = f" on {', '.join(named(code) for code in texts.languages)}" if texts is not None else ""
            most = "highest" if self.end == "top" else "lowest"
            lines = [f"the {share} with the {most} score ({score.kind}){scored}"]
        if self.specific is not None:
            lines.append(f"only units that are active in {named(self.specific)} and in few others")
        if self.monolingual is not None:
            lines.append(f"only those of {named(self.monolingual)} and of no other language")
        return lines

    def provenance(self, plan: RegionPlan, source: Provenance) -> dict[str, Any]:
        """Return what it was selected from, by which score, and how."""
        checkpoint, names = source.checkpoint, [info.name for info in plan.tensors]
        hashes = tensor_hashes(checkpoint, source.jobs, names)
        return {
            "model": last_part(checkpoint.source.name),
            "model_type": checkpoint.config.get("model_type"),
            "revision": checkpoint.source.revision,
            "select": self.model_dump(exclude_none=True),
            "score": None if plan.score is None else plan.score.model_dump(),
            "corpus": source.corpus,
            "source_sha256": {name: hashes[name] for name in names},
            **({} if self.random is None else {"region": plan.drawn_as}),
        }


def _missing(scope: Iterable[TensorInfo], kept: Container[str], why: str) -> tuple[str, ...]:
    """Say in a line which tensors of a scope are not kept; nothing where all are."""
    missing = [info.name for info in scope if info.name not in kept]
    return (f"{counted(missing)}: {why}",) if missing else ()


def _unknown(checkpoint: Checkpoint) -> str:
    """Say which tensors' roles are not known, for those who miss them."""
    names = unknown_kinds(checkpoint)
    if not names:
        return ""
    shown = ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
    return f"; the roles of {len(names)} kinds of tensors are unknown ({shown}): name them in include by such patterns"
