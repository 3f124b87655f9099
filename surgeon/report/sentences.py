"""What came out, in sentences: the headline, what it rests on, and what must be known before it is believed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from surgeon.model.results import FEWEST_TOKENS, PERPLEXITY, Quantity, exponential
from surgeon.report.data import Report
from surgeon.report.entries import Figure, Perplexity
from surgeon.report.story import Story, alike, drawn, ratio, spec_of
from surgeon.report.words import (
    SAME,
    capital,
    count,
    figure_texts,
    interval,
    is_lost,
    number,
    percent,
    quantity_text,
    roles_in_order,
    with_unit,
)
from surgeon.text.languages import Language, language

Named = Callable[[str], Language]  # what is known of a language, by its code
_TOLD = {"freeze": "keep {} as they are", "train_only": "change {}, and nothing else"}  # what trainers do
# What must be known of a model before its figures are read.
_CAVEATS = {
    "builtin:tiny30": "tiny30 was trained so that few entries hold its competence (a soft threshold in every step): "
    "how strong its core is says nothing about other models.",
}

_DOING = {
    "zero": "Zeroing", "scale": "Scaling", "shuffle": "Shuffling", "noise": "Adding noise to", "fill": "Filling",
    "restore": "Putting back", "add": "Adding a change to", "slerp": "Turning",
}  # fmt: skip


def sentence(report: Report, story: Story) -> str:
    """Say in one sentence what came out, beside the controls, or that there was too little text to tell."""
    beside = _beside(report, story, story.cut) if story.cut is not None and _tells_of_a_cut(report, story) else []
    return "; ".join([headline(report, story).removesuffix("."), *beside]) + "."


def evidence(report: Report, story: Story) -> str | None:
    """Say in one line what the headline rests on: unit, number of languages, means with intervals, seeds, guessing."""
    if story.cut is None or not _tells_of_a_cut(report, story) or "base" not in report.summary:
        return None
    languages = count(len(report.perplexity["base"]), "language")
    means = [f"{report.label(name)} {mean_words(report, name)}" for name in story.shown if name in report.summary]
    guess = report.guessing()
    told = f". A uniform guess: {number(exponential(guess))}" if guess is not None else ""
    text = f"Perplexity as a multiple of the base's, geometric mean of {languages}: {'; '.join(means)}{told}."
    return text.replace(" %", "\u00a0%")


def mean_words(report: Report, name: str) -> str:
    """Say a variant's mean ratio to the base with its interval; of a control drawn several times, with its range."""
    item = report.mean(name)
    if item.low is None or item.high is None:
        return number(item.ratio_to_base)
    bounds = "range" if report.is_range(name) else "95 % interval"
    return f"{number(item.ratio_to_base)} ({bounds} {interval(item.low, item.high)})"


def measured_lines(report: Report, story: Story) -> list[str]:
    """Say in a line each what every other measurement found: means with intervals, unit, direction, and chance."""
    lines = []
    for kind, item in report.measurements.items():
        quantity = item.quantities[0]
        said = [
            f"{report.label(name)} {_value(report, quantity, name, figure)}"
            for name in ("base", *story.shown)
            if (figure := report.figure(kind, name, None, quantity.name)) is not None
        ]
        if said and kind != PERPLEXITY:
            chance = "" if quantity.chance is None else f"; by chance {quantity_text(quantity, quantity.chance)}"
            title = f"{capital(with_unit(quantity))}, mean by {item.by} ({quantity.worse} is worse)"
            lines.append(f"{title}: {'; '.join(said)}{chance}.".replace(" %", "\u00a0%"))
    return lines


def _value(report: Report, quantity: Quantity, name: str, figure: Figure) -> str:
    """Return a mean, its change from the base, and the interval of the change, or else of the value."""
    text, change, bounds = figure_texts(quantity, figure)
    told = [] if change is None else [f"change {change}"]
    if bounds is not None:
        told.append(f"{'range' if report.is_range(name) else '95 % interval'} {bounds}")
    return f"{text} ({', '.join(told)})" if told else text


def _tells_of_a_cut(report: Report, story: Story) -> bool:
    """True if the headline is of one cut and its effect; else it is of something that has no controls."""
    if story.cut is None or not report.variants[story.cut].done or len(story.own) > 1:
        return False
    return too_little_text(report.perplexity, report.language) is None


def headline(report: Report, story: Story) -> str:
    """Say in a short sentence what came out, or that there was too little text to tell."""
    little = too_little_text(report.perplexity, report.language)
    if little is not None and (story.cut is None or report.variants[story.cut].done):
        return little
    if story.cut is None and not report.perplexity:
        variants = report.variants.values()
        if variants and all(variant.told and not variant.done for variant in variants):
            return _of_a_bundle(report, next(iter(report.variants)))
    if story.cut is None:
        return _of_a_sweep(report) if report.sweeps and report.perplexity else _of_a_region(report, story)
    if not report.variants[story.cut].done:
        return _of_a_bundle(report, story.cut)
    kinds = list(dict.fromkeys(step.kind for step in report.variants[story.cut].done))
    doing = f"{_DOING.get(kinds[0], kinds[0]) if len(kinds) == 1 else 'Changing'} {_amount(report, story.cut)}"
    if len(story.own) > 1:
        pairs = [(name, own, code) for name, own in story.own.items() for code in report.perplexity[name]]
        mine = [ratio(report, name, code) for name, own, code in pairs if code == own]
        rest = [ratio(report, name, code) for name, own, code in pairs if code != own]
        if mine and rest:
            return (
                f"{doing} that one language alone needs makes that language {_worse(mine)}, every other language "
                f"{_worse(rest)}; {count(len(story.own), 'language')} tried."
            )
    ratios = {code: ratio(report, story.cut, code) for code in report.perplexity[story.cut]}
    unknown = report.unknown_languages()
    where = _languages(report.language, unknown, len(ratios)) if unknown else ""
    but = f", but in {where} the base itself is no better than guessing" if unknown else ""
    return f"{doing} {_effect(report, ratios)}{but}."


def caveat(report: Report) -> str | None:
    """Return what must be known of the model before its figures are read, if there is anything."""
    return _CAVEATS.get(report.model.name)


def too_little_text(perplexity: Mapping[str, Mapping[str, Perplexity]], named: Named = language) -> str | None:
    """Say so if in some language too few tokens were predicted for a sentence about it; None if there are enough."""
    tokens = {code: item.tokens for by_language in perplexity.values() for code, item in by_language.items()}
    short = {code: count for code, count in tokens.items() if count < FEWEST_TOKENS}
    if not short:
        return None
    code = min(short, key=lambda code: short[code])
    few = f"{_languages(named, list(short), len(tokens))} measured on fewer than {FEWEST_TOKENS} tokens"
    fewest = f"{named(code).name}: {short[code]}"
    return f"Too little text to tell: {few} ({fewest}). Set verify.tokens to more, or give longer texts."


def no_intervals(
    perplexity: Mapping[str, Mapping[str, Perplexity]], named: Named = language, base: str = "base"
) -> str | None:
    """Say why there is no interval, and what gives one; None if every ratio to the base has its interval."""
    without = {
        code: item.tokens
        for name, by_language in perplexity.items() if name != base
        for code, item in by_language.items() if item.low is None
    }  # fmt: skip
    if not without or base not in perplexity:
        return None
    which = _languages(named, list(without), len(perplexity[base]))
    window = max(min(without.values()) // 4, 1)
    return (
        f"No interval can be given for {which}: the text is one sentence and one window only, which cannot vary. Set "
        f"verify.window to {window} or less, or measure on more text (verify.tokens)."
    )


def _beside(report: Report, story: Story, cut: str) -> list[str]:
    """Say what the controls did, those of one kind together."""
    by_kind: dict[str, list[float]] = {}
    for name in story.controls:
        by_kind.setdefault(_control(report, name, cut), []).append(report.mean(name).ratio_to_base)
    guess, entries = report.guessing(), report.variants[cut].entries

    def change(value: float) -> str:
        lost = guess is not None and value > 0 and is_lost(math.log(value), guess)
        return "no better than guessing" if lost else _change(value)

    controls = [f"{kind} {_ends(values, change)}" for kind, values in by_kind.items()]
    same = all(alike(report.variants[name].entries, entries) for name in story.controls)
    size = "of the same size" if same else "of other sizes"  # where there is one of its size, these alone are told
    return [f"controls {size}: {', '.join(controls)}"] if controls else []


def _ends(values: Sequence[float], said: Callable[[float], str]) -> str:
    """Say from where to where values go; once where the ends are said alike."""
    return " to ".join(dict.fromkeys(map(said, (min(values), max(values)))))


def _effect(report: Report, ratios: dict[str, float]) -> str:
    broken = [code for code, value in ratios.items() if not math.isfinite(value)]
    worse = {code: value for code, value in ratios.items() if math.isfinite(value) and value >= 1 + SAME}
    lost = [code for code, value in worse.items() if is_lost(math.log(value), report.guessing(code))]
    worse = {code: value for code, value in worse.items() if code not in lost}
    better = [value for value in ratios.values() if value <= 1 - SAME]
    parts = []
    if broken:
        parts.append(f"breaks {_languages(report.language, broken, len(ratios))} beyond numbers")
    if lost:
        parts.append(f"makes {_languages(report.language, lost, len(ratios))} no better than guessing")
    if worse:
        parts.append(f"makes {_languages(report.language, list(worse), len(ratios))} {_worse(list(worse.values()))}")
    if better:
        everywhere = "both languages" if len(ratios) == 2 else f"all {len(ratios)} languages"
        which = everywhere if len(better) == len(ratios) > 1 else count(len(better), "language")
        parts.append(f"makes {which} up to {100 * (1 - min(better)):.2g}\u00a0% better")
    return " and ".join(parts) or f"changes none of {count(len(ratios), 'language')} by 1\u00a0% or more"


def _languages(named: Named, codes: Sequence[str], of: int) -> str:
    if len(codes) == 1:
        return named(codes[0]).name
    if len(codes) == of:
        return "both languages" if of == 2 else f"all {of} languages"
    return f"{len(codes)} of {of} languages"


def _worse(ratios: Sequence[float]) -> str:
    """Say by how much, from the least to the most: in per cent, or in multiples where it is more than double."""
    finite = [value for value in ratios if math.isfinite(value)]
    low, high = min(finite, default=math.inf), max(finite, default=math.inf)
    if low <= 1 - SAME:
        return f"{_change(low)} to {_change(high)} worse"
    if high < 2:
        return f"{_ends((max(low, 1.0), high), lambda value: f'{100 * (value - 1):.2g}')}\u00a0% worse"
    return f"{_ends((low, high), number)} times worse"


def _change(value: float) -> str:
    """Say how far a ratio is from 1."""
    if math.isnan(value):
        return "not a number"
    if value >= 2:
        return f"{number(value)} times"
    points = round(100 * (value - 1), 1)
    shown = "0" if points == 0 else f"{points:.1f}" if abs(points) < 9.95 else f"{points:.0f}"
    return f"{shown}\u00a0%".replace("-", "\u2212")


def _of_a_bundle(report: Report, variant: str) -> str:
    """Say of a variant that no operation acts on what it is for."""
    step = report.variants[variant].told[0]
    region = report.regions.get(step.region)
    write = ((report.recipe.get("variants") or {}).get(variant) or {}).get("write")
    stored = f"decoded to {write['dtype']}" if isinstance(write, dict) else "byte for byte"
    return (
        f"The weights are the source's, {stored}; a trainer that heeds freeze/ will "
        f"{_TOLD[step.kind].format(_share(report, step.region, region.entries if region is not None else 0))}."
    )


def _amount(report: Report, variant: str) -> str:
    entries, used = report.variants[variant].entries, report.variants[variant].regions
    if len(used) == 1:
        return _share(report, used[0], entries)
    return "a single weight" if entries == 1 else f"{entries:,} weights"


def _share(report: Report, name: str, entries: int) -> str:
    """Say how much a region is, as a share of what could have been chosen."""
    if entries == 1:
        return "a single weight"
    region = report.regions.get(name)
    if region is None or not region.numel:
        return f"{entries:,} weights" if entries else f"the region {name}"
    roles = roles_in_order(region.roles)
    whole = "mlp.down" in roles and ("attn.q" in roles or "attn.qkv" in roles)
    where = "the decoder's weights" if whole else f"the weights in {' and '.join(roles)}"
    layers = spec_of(report, name).get("layers")
    where += f", layers {layers[0]} to {layers[1]}," if layers else ""
    return f"{percent(float(f'{region.fraction:.2g}'))} of {where}".replace(" %", "\u00a0%")


def _control(report: Report, variant: str, cut: str) -> str:
    """Name a control by how its entries were chosen, and by its variant where their number is another."""
    kinds = {drawn(report, region) for region in report.variants[variant].regions}
    said = {
        "bottom": "lowest scores", "magnitude": "largest weights", "random": "random weights",
        "dimensions": "other dimensions",
    }  # fmt: skip
    kind = "dimensions" if "dimensions" in kinds else kinds.pop() if len(kinds) == 1 else None
    if kind not in said:
        return variant
    same = alike(report.variants[variant].entries, report.variants[cut].entries)
    return said[kind] if same else f"{said[kind]} ({variant})"


def _of_a_sweep(report: Report) -> str:
    ratios = {point: report.summary[point].ratio_to_base for sweep in report.sweeps.values() for point in sweep.points}
    worst = max(ratios, key=lambda point: math.inf if math.isnan(ratios[point]) else ratios[point])
    return (
        f"At {count(len(ratios), 'point')} of a sweep, mean perplexity is {number(min(ratios.values()))} to "
        f"{number(ratios[worst])} times the base's, most at {report.named(worst)}."
    )


def _of_a_region(report: Report, story: Story) -> str:
    if story.region is None:
        return f"{count(len(report.variants), 'variant')} of {report.model.name}."
    region = report.regions[story.region]
    return (
        f"The region {story.region} holds {percent(float(f'{region.fraction:.2g}'))} of the weights in its reach: "
        f"{region.entries:,} entries in {count(region.tensors, 'tensor')}."
    )
