"""Numbers and names as people read them; shared by the terminal, the page and the figures."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from surgeon.checkpoint.naming import ROLES
from surgeon.model.results import Quantity

if TYPE_CHECKING:
    from surgeon.report.entries import Figure


SAME = 0.01  # a ratio to the base's that differs from 1 by less is no effect


def count(number_of: int, thing: str) -> str:
    """Return a number of things in words."""
    return f"{number_of:,} {thing}{'' if number_of == 1 else 's'}"


def number(value: float) -> str:
    """Format a perplexity or ratio in at most seven characters."""
    if math.isnan(value):
        return "nan"
    if math.isinf(value):
        return "inf"
    if value >= 9999.5:
        return f"{value:.1e}".replace("e+0", "e").replace("e+", "e")
    return f"{value:,.0f}" if value >= 99.95 else f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"


def exactly(value: float) -> str:
    """Format a ratio that is compared with a bound: three decimals where it is small."""
    return "not a number" if math.isnan(value) else f"{value:.3f}" if value < 100 else number(value)


def interval(low: float | None, high: float | None) -> str:
    """Say the bounds of an interval, such as "1.49 to 1.53"; a dash where there is none."""
    return "-" if low is None or high is None else f"{number(low)} to {number(high)}"


def size(count: int) -> str:
    """Format a number of bytes."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 999.5:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} TB"


def roles_in_order(roles: Iterable[str]) -> list[str]:
    """Sort roles as a layer has them: attention, MLP, norms, then what is outside."""
    return sorted(set(roles), key=lambda role: ROLES.index(role) if role in ROLES else len(ROLES))


def text_alone(senses: Sequence[str]) -> str:
    """Say of a model that takes in more than text that it was run on text alone; nothing of any other."""
    if not senses:
        return ""
    other = {"vision": "images", "audio": "sound"}
    said = " and ".join(other[sense] for sense in senses)
    return f"The model also takes {said}. Scores and figures are about text alone, not about {said}"


def percent(share: float) -> str:
    """Format a share with three digits."""
    return f"{100 * share:.3g} %"


def is_number(value: Any) -> bool:
    """Say whether a value of a sweep's axis is a number, which has a place on a scale."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def coordinate(value: Any) -> str:
    """Format a value of a sweep's axis."""
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list):
        return ", ".join(map(coordinate, value))
    return (
        " ".join(f"{key} {coordinate(inner)}" for key, inner in value.items())
        if isinstance(value, dict)
        else str(value)
    )


def capital(text: str) -> str:
    """Return a text with a capital at its beginning."""
    return text[:1].upper() + text[1:]


def with_unit(quantity: Quantity) -> str:
    """Return a quantity's title, and the unit unless that says the same."""
    return quantity.title + (f", {quantity.unit}" if quantity.unit not in ("", quantity.title) else "")


def quantity_text(quantity: Quantity, value: float, change: bool = False) -> str:
    """Format a measured value, or its change from the base's, which has a sign where it is a difference."""
    if change and quantity.compare == "ratio":
        return f"×{number(value)}"
    if math.isnan(value) or math.isinf(value):
        return number(value)
    value = 0.0 if abs(value) < 1e-6 else value  # below that, sums of float32 are rounding
    sign = "\u2212" if value < 0 else "+" if change else ""
    if quantity.share:
        return f"{sign}{abs(100 * value):.1f} " + ("points" if change else "%")
    size = abs(value)
    return sign + (number(size) if size >= 10 else f"{size:.3f}" if size >= 0.1 else f"{size:.2g}")


def figure_texts(quantity: Quantity, figure: Figure) -> tuple[str, str | None, str | None]:
    """Say a measured value, its change from the base's, and the bounds of that, such as "50.0 to 90.0 %".

    Where there is no change, the bounds are those of the value.
    """
    value, is_change = quantity_text(quantity, figure.value), figure.change is not None
    change = None if figure.change is None else quantity_text(quantity, figure.change, change=True)
    if figure.low is None or figure.high is None:
        return value, change, None
    first, last = (quantity_text(quantity, end, is_change) for end in (figure.low, figure.high))
    number_alone, blank, unit = first.rpartition(" ")
    return value, change, f"{number_alone if blank and last.endswith(f' {unit}') else first} to {last}"


def stopped_note(stopped: str) -> str:
    """Say why a continuation ends where it does, if it is not for its length."""
    return {"end": "(the end, says the model)", "nan": "(then the output is not a number)"}.get(stopped, "")


def bounds(at_least: float | None, at_most: float | None) -> str:
    """Say what a ratio was expected to be, such as "at least 2.00 and at most 8.00"."""
    given = [("at least", at_least), ("at most", at_most)]
    return " and ".join(f"{word} {number(value)}" for word, value in given if value is not None)


def is_lost(log: float, guess: float | None) -> bool:
    """True for the logarithm of a ratio at which a model is no better than guessing; `guess` is that of guessing."""
    return guess is not None and not log < guess
