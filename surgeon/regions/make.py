"""Make the regions of a plan, each after those that it is made from; selected ones come from the cache if they can."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from surgeon.errors import present
from surgeon.region.region import Region
from surgeon.regions.base import Making, Provenance, RegionPlan, Stream, made_from
from surgeon.regions.kept import keep_region, load_region
from surgeon.scores.base import Score


@dataclass(frozen=True)
class Scored:
    """What came of one score: `keys` name what it depends on, by language; `stream` gives it once more.

    `stream` is asked for some regions, whose tensors that share a cut come in one unit. Where scores on text were not
    kept, it has none, and `regions` holds what was made by them.
    """

    score: Score
    keys: Mapping[str, str] = field(default_factory=dict)
    stream: Callable[[Sequence[RegionPlan]], Stream] | None = None
    regions: Mapping[str, Region] = field(default_factory=dict)


def make_regions(
    source: Provenance, scored: Sequence[Scored], names: Iterable[str], known: Mapping[str, Region]
) -> dict[str, Region]:
    """Return the named regions of a plan, those in `known` as they are."""
    made, plans = dict(known), source.plans

    def of(plan: RegionPlan) -> Scored | None:
        """Return the score that a region depends on: its own, or that of the region that it is drawn like."""
        scores = [plan.score, *(plans[name].score for name in plan.kind.parents)]
        score = next((score for score in scores if score is not None), None)
        return next((item for item in scored if item.score == score), None)

    def kept(plan: RegionPlan, make: Callable[[], Region]) -> Region:
        found = of(plan)
        keys = found.keys if found is not None else {}
        before = load_region(source, plan, keys)
        return before if before is not None else keep_region(source, plan, keys, make())

    def stream(plan: RegionPlan) -> Stream:
        return present(present(of(plan)).stream)([plan])

    def ahead(plan: RegionPlan) -> Region | None:
        found = of(plan)
        return found.regions.get(plan.name) if found is not None else None

    def part(name: str) -> Region:
        if name not in made:
            plan = plans[name]
            region = plan.kind.make(making, plan)
            if not plan.kind.says_itself:
                region = region.only(info.name for info in plan.tensors)
                region.metadata = made_from(plan, source)
            made[name] = region
        return made[name]

    making = Making(source.checkpoint, plans, part, kept, ahead, stream)
    return {name: part(name) for name in names}
