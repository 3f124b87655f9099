"""What a recipe's expectations ask for and is not measured: by measurement, quantity and group."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from surgeon.errors import did_you_mean
from surgeon.kinds import kinds
from surgeon.recipe.lines import KeyPath
from surgeon.recipe.schema import ExpectSpec, VerifySpec

if TYPE_CHECKING:
    from surgeon.measure.base import Measurement


def unmeasured(verify: VerifySpec | None) -> Iterator[tuple[KeyPath, str]]:
    """Find names in expectations of measurements that are not made, and bounds that a quantity does not have."""
    made = {item.kind: item for item in verify.measurements} if verify is not None else {}
    for i, item in enumerate(verify.expect if verify is not None else ()):
        at: KeyPath = ("verify", "expect", i)
        if item.measurement is None:
            continue
        if item.measurement in made:
            yield from ((((*at, key) if key else at), what) for key, what in _problems(item, made[item.measurement]))
        elif item.measurement in kinds("surgeon.measurements"):
            yield (
                (*at, "measurement"),
                f"{item.measurement} is not measured: give it its key in `verify`",
            )
        else:
            what = f"no measurement '{item.measurement}'{did_you_mean(item.measurement, made)}"
            yield (*at, "measurement"), what


def _problems(item: ExpectSpec, made: Measurement) -> Iterator[tuple[str, str]]:
    by_language = made.grouped_by == "language"
    if item.language is not None and not by_language:
        yield "language", f"{made.kind} has a figure for each {made.grouped_by}: write `group: ...`"
    if item.group is not None and by_language:
        yield "group", f"{made.kind} has a figure for each language: write `language: ...`"
    if not made.has_mean and item.group is None:
        yield "", f"{made.kind} has no mean over each {made.grouped_by}: say `group: ...`"
    quantities = {quantity.name: quantity for quantity in made.quantities()}
    if not quantities:  # only the figures themselves say which there are
        return
    name = item.quantity if item.quantity is not None else next(iter(quantities))
    if name not in quantities:
        yield "quantity", f"{made.kind} has no quantity '{name}'{did_you_mean(name, quantities)}"
        return
    to_base = quantities[name].compare == "base"
    if item.of_change and to_base:
        yield "", f"{name} compares with the base already: say at_least or at_most"
    if item.at != "point" and not item.of_change and not to_base:
        yield "at", f"the interval is that of the change of {name}: say change_at_least or change_at_most"
