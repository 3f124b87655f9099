"""An audit, rendered: the picture, the badge, the section for a model card, and a page that needs nothing else."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from surgeon.inside import replacing
from surgeon.json_text import to_json
from surgeon.measure.verdicts import VERDICTS, Audit, Change
from surgeon.report.charts import amount, colour, finished, intervals, layer, named, rule_at, words
from surgeon.report.drawing import Figure, svg, themed
from surgeon.report.markup import markdown, rendered
from surgeon.report.words import count

_COLOURS = {"lost": "bad", "worse": "warm", "kept": "good"}
_BADGE = {"lost": "#b3261e", "worse": "#9a5b00", "kept": "#2e6f40"}  # white letters stand out from each


def verdict_line(audit: Audit) -> str:
    """Say in one line how many languages have each verdict."""
    said = [f"{audit.counts[name]} {name}" for name in VERDICTS if audit.counts[name]]
    return f"{', '.join(said)} of {count(len(audit.changes), 'language')}"


def change_line(audit: Audit, one: Change) -> str:
    """Say of one language what became of it."""
    said = f"{audit.names[one.language]}: {one.verdict}, {percent(one.change)} bits per byte"
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


def audit_data(audit: Audit) -> dict[str, Any]:
    """Return all that was found, as plain data."""
    return {
        "model": audit.model, "base": audit.base, "same_tokenizer": audit.same_tokenizer, "counts": audit.counts,
        "rules": audit.rules, "notes": list(audit.notes),
        "languages": {one.language: asdict(one) | {"name": audit.names[one.language]} for one in audit.changes},
    }  # fmt: skip


def picture(audit: Audit) -> Figure:
    """Draw the change of every language, the most damaged first, with its interval."""
    rows = []
    for one in audit.changes:
        values = {"change": one.change, "low": one.low, "high": one.high}
        # What is broken stands at five times as many bits.
        drawn = {name: min(x, 4.0) if math.isfinite(x) else 4.0 for name, x in values.items() if x is not None}
        label = audit.names[one.language]
        rows.append({"label": label, "verdict": one.verdict, **drawn, "said": change_line(audit, one)})
    hue = words(
        "verdict", legend={"title": None, "symbolOpacity": 1},
        scale={"domain": list(VERDICTS), "range": [colour(_COLOURS[name]) for name in VERDICTS]},
    )  # fmt: skip
    axis = {"format": "+.2~%", "grid": True}
    encoding = {
        "x": amount("change", title="change in bits per byte; to the right is worse", axis=axis),
        "y": named("label", [row["label"] for row in rows]),
    }
    layers = [
        intervals("x", hue),
        layer("point", {"filled": True, "size": 60, "opacity": 1}, color=hue, tooltip=words("said")),
    ]  # fmt: skip
    spec = {
        "data": {"values": rows}, "width": 470, "height": {"step": 17},
        "layer": [{"encoding": encoding, "layer": layers}, rule_at("x", 0, color=colour("ink"))],
    }  # fmt: skip
    text = f"Change in bits per byte against {audit.base}, the most damaged language first. Bars are intervals of 95 %."
    return Figure("audit", "What was kept, by language", text, finished(spec))


def badge(audit: Audit) -> str:
    """Return a badge: two fields, as wide as their words."""
    worst = next(name for name in VERDICTS if audit.counts[name] or name == "kept")
    said = f"{audit.counts['kept']}/{len(audit.changes)} kept"
    return rendered("badge.svg", left="languages", right=said, fill=_BADGE[worst], title=verdict_line(audit))


def card_section(audit: Audit) -> str:
    """Return a section for a model card, in Markdown."""
    lines = [
        "## Languages kept", "",
        f"Against {markdown(audit.base)}: {verdict_line(audit)} (`surgeon audit`, bits per byte by paragraph).", "",
        "| language | verdict | change | interval | KL, nats/token | same likeliest token | goes on in it (base) |",
        "|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for one in audit.changes:
        bounds = "" if one.low is None or one.high is None else f"{percent(one.low)} to {percent(one.high)}"
        stays = "" if one.stays is None else f"{one.stays[1]:.0%} ({one.stays[0]:.0%})"
        kl = "" if one.kl is None else nats(one.kl)
        same = "" if one.agreement is None else f"{one.agreement:.0%}"
        cells = [markdown(audit.names[one.language]), one.verdict, percent(one.change), bounds, kl, same, stays]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", *(f"{line}.  " for line in (*audit.rules, *audit.notes)), ""])


def write_audit(audit: Audit, output: Path) -> list[Path]:
    """Write data, page, picture, badge and the card's section into a folder; returns the files."""
    from markupsafe import Markup

    output.mkdir(parents=True, exist_ok=True)
    drawn = picture(audit)
    page = rendered(
        "audit.html", audit=audit, line=verdict_line(audit),
        picture=Markup(svg(drawn)), title=drawn.title, caption=drawn.caption, percent=percent, nats=nats,
    )  # fmt: skip
    contents = {
        "audit.json": to_json(audit_data(audit)) + "\n", "audit.html": page,
        "audit.svg": themed(svg(drawn), dark=False), "badge.svg": badge(audit), "card.md": card_section(audit),
    }  # fmt: skip
    files = []
    for name, content in contents.items():
        with replacing(output / name) as part:
            part.write_text(content, encoding="utf-8")
        files.append(output / name)
    return files
