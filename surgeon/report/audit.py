"""An audit, rendered: the picture, the badge, the section for a model card, and a page that needs nothing else."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from surgeon.inside import replacing
from surgeon.json_text import to_json
from surgeon.measure.verdicts import VERDICTS, Audit, Change
from surgeon.report.drawing import PALETTE, Figure, amount, colour, finished, layer, named, svg, themed, words
from surgeon.report.escaping import markdown
from surgeon.report.templates import HERE, rendered
from surgeon.report.words import count

_COLOURS = {"lost": "bad", "worse": "warm", "kept": "good"}
_BADGE = {"lost": "#b3261e", "worse": "#9a5b00", "kept": "#2e6f40"}  # white letters stand out from each
_FILES = ("audit.json", "audit.html", "audit.svg", "badge.svg", "card.md")


def verdict_line(found: Audit) -> str:
    """Say in one line how many languages have each verdict."""
    said = [f"{found.counts[name]} {name}" for name in VERDICTS if found.counts[name]]
    return f"{', '.join(said)} of {count(len(found.changes), 'language')}"


def change_line(found: Audit, one: Change) -> str:
    """Say of one language what became of it."""
    said = f"{found.names[one.language]}: {one.verdict}, {percent(one.change)} bits per byte"
    if one.low is not None and one.high is not None:
        said += f" ({percent(one.low)} to {percent(one.high)})"
    if one.kl is not None and one.agreement is not None:
        said += f"; KL {nats(one.kl)} nats per token, same likeliest token at {one.agreement:.0%} of tokens"
    if one.stays is not None:
        said += f"; goes on in it {one.stays[1]:.0%} of the time, the base {one.stays[0]:.0%}"
        said += f" (instead: {one.instead})" if one.instead else ""
    return said


def nats(value: float) -> str:
    """Format a divergence with three digits."""
    return f"{max(value, 0.0):.3g}"  # below some 1e-7 it is rounding, of either sign


def percent(share: float) -> str:
    """Format a change as a percentage with its sign."""
    if not math.isfinite(share):
        return str(share)
    sign = "+" if share >= 0 else "\u2212"
    return f"{sign}{abs(100 * share):.1f} %"


def audit_data(found: Audit) -> dict[str, Any]:
    """Return all that was found, as plain data."""
    return {
        "model": found.model, "base": found.base, "same_tokenizer": found.same_tokenizer, "counts": found.counts,
        "rules": found.rules, "notes": list(found.notes),
        "languages": {one.language: asdict(one) | {"name": found.names[one.language]} for one in found.changes},
    }  # fmt: skip


def picture(found: Audit) -> Figure:
    """Draw the change of every language, the most damaged first, with its interval."""
    rows = [
        {"label": found.names[one.language], "verdict": one.verdict, **_places(one), "said": change_line(found, one)}
        for one in found.changes
    ]
    hue = words(
        "verdict", legend={"title": None, "symbolOpacity": 1},
        scale={"domain": list(VERDICTS), "range": [colour(_COLOURS[name]) for name in VERDICTS]},
    )  # fmt: skip
    axis = {"format": "+.2~%", "grid": True}
    zero = {"data": {"values": [{}]}, "mark": {"type": "rule", "color": colour("ink")}, "encoding": {"x": {"datum": 0}}}
    place = {
        "x": amount("change", title="change in bits per byte; to the right is worse", axis=axis),
        "y": named("label", [row["label"] for row in rows]),
    }
    bar = {"strokeWidth": 5, "opacity": 0.35}
    layers = [
        layer("rule", bar, "isValid(datum.low)", x=amount("low"), x2={"field": "high"}, color=hue),
        layer("point", {"filled": True, "size": 60, "opacity": 1}, color=hue, tooltip=words("said")),
    ]  # fmt: skip
    spec = {
        "data": {"values": rows}, "width": 470, "height": {"step": 17},
        "layer": [{"encoding": place, "layer": layers}, zero],
    }  # fmt: skip
    text = f"Change in bits per byte against {found.base}, the most damaged language first. Bars are intervals of 95 %."
    return Figure("audit", "What was kept, by language", text, finished(spec))


def _places(one: Change) -> dict[str, float]:
    """Return what can be drawn of a change; what is broken stands at five times as many bits."""
    found = {"change": one.change, "low": one.low, "high": one.high}
    return {
        name: min(value, 4.0) if math.isfinite(value) else 4.0 for name, value in found.items() if value is not None
    }


def badge(found: Audit) -> str:
    """Return a badge: two fields, as wide as their words."""
    worst = next(name for name in VERDICTS if found.counts[name] or name == "kept")
    said = f"{found.counts['kept']}/{len(found.changes)} kept"
    return rendered("badge.svg", left="languages", right=said, fill=_BADGE[worst], title=verdict_line(found))


def card_section(found: Audit) -> str:
    """Return a section for a model card, in Markdown."""
    lines = [
        "## Languages kept", "",
        f"Against {markdown(found.base)}: {verdict_line(found)} (`surgeon audit`, bits per byte by paragraph).", "",
        "| language | verdict | change | interval | KL, nats/token | same likeliest token | goes on in it (base) |",
        "|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for one in found.changes:
        bounds = "" if one.low is None or one.high is None else f"{percent(one.low)} to {percent(one.high)}"
        stays = "" if one.stays is None else f"{one.stays[1]:.0%} ({one.stays[0]:.0%})"
        kl = "" if one.kl is None else nats(one.kl)
        same = "" if one.agreement is None else f"{one.agreement:.0%}"
        cells = [markdown(found.names[one.language]), one.verdict, percent(one.change), bounds, kl, same, stays]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", *(f"{line}.  " for line in (*found.rules, *found.notes)), ""])


def write_audit(found: Audit, output: Path) -> list[Path]:
    """Write data, page, picture, badge and the card's section into a folder; returns the files."""
    from markupsafe import Markup

    output.mkdir(parents=True, exist_ok=True)
    drawn = picture(found)
    page = rendered(
        "audit.html", audit=found, line=verdict_line(found),
        picture=Markup(svg(drawn)), title=drawn.title, caption=drawn.caption, percent=percent, nats=nats,
        palette=PALETTE, style=Markup((HERE / "page.css").read_text(encoding="utf-8")),
    )  # fmt: skip
    contents: Mapping[str, str] = {
        "audit.json": to_json(audit_data(found)) + "\n", "audit.html": page,
        "audit.svg": themed(svg(drawn), dark=False), "badge.svg": badge(found), "card.md": card_section(found),
    }  # fmt: skip
    files = []
    for name in _FILES:
        with replacing(output / name) as part:
            part.write_text(contents[name], encoding="utf-8")
        files.append(output / name)
    return files
