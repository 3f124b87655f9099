"""The model card of a written variant: what it is, what was cut, what that did, how to make it again.

Of the source's own card only what the Hub needs is taken over, and only in the form in which it may stand there,
so that no text of it, however long or strange, reaches the new one.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import yaml

from surgeon.anatomy.scope import left_out, senses
from surgeon.checkpoint.address import is_repository, last_part
from surgeon.errors import RecipeError
from surgeon.inside import replacing
from surgeon.plan.plan import Plan
from surgeon.recipe.plain_yaml import plain, read_yaml
from surgeon.region.region import Region
from surgeon.report.data import Report
from surgeon.report.drawing import svg, write_pictures
from surgeon.report.figures import variant_figures
from surgeon.report.markup import markdown, markdown_code, rendered
from surgeon.report.published import published
from surgeon.report.sentences import caveat, mean_words, measured_lines, no_intervals, sentence
from surgeon.report.story import tell
from surgeon.report.tables import languages_table
from surgeon.report.words import text_alone
from surgeon.text.corpora import DatasetLocation

FIGURES, RESULTS = "figures", ".eval_results"
# Where `surgeon push` says how to rebuild the variant; only then is the repository's name known.
REBUILD = "<!-- surgeon: rebuild -->"

_FRONT = re.compile(r"\A\ufeff?\s*---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(?:\r?\n|\Z)", re.DOTALL)
_LONGEST_CARD = 1 << 20  # characters of the source's card that are read
_FORMS = {
    "license": re.compile(r"[\w.+-]{1,64}", re.ASCII),
    "license_name": re.compile(r"[\w.+-]{1,96}", re.ASCII),
    # An address of the web, or a file of the repository: nothing with another scheme.
    "license_link": re.compile(r"https?://[\w.~:/?#@!$&()*+,;=%-]{1,300}|\w[\w./-]{0,100}", re.ASCII),
    "pipeline_tag": re.compile(r"[a-z0-9-]{1,64}"),
}
_CONTROLS = 8  # other variants of the run that are set beside
_LANGUAGE = re.compile(r"[A-Za-z0-9-]{2,20}")


@dataclass(frozen=True)
class SourceCard:
    """What a card takes over from the card of the source: fields of the front matter, and the languages."""

    fields: Mapping[str, str]
    languages: tuple[str, ...] = ()

    @classmethod
    def read(cls, folder: Path) -> SourceCard:
        """Read README.md of a folder; a card that is missing or damaged gives nothing."""
        try:
            with (folder / "README.md").open(encoding="utf-8", errors="replace") as file:
                return cls.parse(file.read(_LONGEST_CARD))
        except OSError:
            return cls({})

    @classmethod
    def parse(cls, text: str) -> SourceCard:
        """Take from a card's text what has the form it must have."""
        front = _FRONT.match(text)
        try:
            data = plain(read_yaml(front[1], lambda line: f"README.md:{line}")[0]) if front is not None else {}
        except RecipeError:  # damaged, or beyond the limits of what is read
            return cls({})
        if not isinstance(data, dict):
            return cls({})
        fields = {key: data[key] for key, form in _FORMS.items() if _has_form(data.get(key), form)}
        given = data.get("language")
        listed = given if isinstance(given, list) else [given]
        return cls(fields, tuple(dict.fromkeys(str(code) for code in listed if _has_form(code, _LANGUAGE))))


def _has_form(value: Any, form: re.Pattern[str]) -> bool:
    return isinstance(value, str) and form.fullmatch(value) is not None


def model_card(plan: Plan, variant: str, regions: Mapping[str, Region], report: Report | None = None) -> str:
    """Return README.md of a variant that uses `regions`; with a report it shows what was measured."""
    inherited, source = SourceCard.read(plan.checkpoint.folder), plan.checkpoint.source
    report = published(report) if report is not None else None
    return rendered(
        "card.md",
        code=markdown_code,
        text=markdown,
        html=escape,
        front_matter=_front_matter(plan, variant, inherited, report),
        plan=plan,
        spec=plan.recipe.variants[variant],
        variant=variant,
        source=last_part(source.name),
        revision=source.revision,
        base=base_model(source.name),
        regions=regions,
        why=lambda region: _why(plan, region),
        left_out=left_out(plan.checkpoint, plan.edited(variant)),
        text_alone=text_alone(senses(plan.checkpoint)) if plan.runs_model else "",
        rebuild=REBUILD,
        **_measured(variant, report),
    )


def _measured(variant: str, report: Report | None) -> dict[str, Any]:
    """Return what the card shows of perplexity: a sentence, figures, and a table beside the base's."""
    if report is None or variant not in report.perplexity:
        return {"measured": {}}
    measured = {name: report.perplexity[name] for name in ("base", variant)}
    report = _by_itself(report, variant)
    return {
        "measured": measured[variant],
        "report": report,
        "sentence": sentence(report, tell(report, variant)),
        "caveat": caveat(report),
        "unsure": no_intervals(measured, report.language),
        "before": report.summary["base"],
        "after": report.summary[variant],
        "others": [
            f"{report.label(name)} {mean_words(report, name)}" for name in report.measured_alone if name not in measured
        ][:_CONTROLS],
        "figures": variant_figures(report, variant),
        "languages": languages_table(measured, variant, named=report.language).rows,
        "measured_beside": measured_lines(report, tell(report, variant)),
    }


def _by_itself(report: Report, variant: str) -> Report:
    """Return the report in which a draw of a control stands for itself, and not for the mean of all draws."""
    sweeps = {name: sweep for name, sweep in report.sweeps.items() if sweep.control != variant}
    return report.model_copy(update={"sweeps": sweeps})


def write_card(folder: Path, card: str, report: Report, variant: str) -> None:
    """Replace README.md of a variant's folder, and put figures beside it if it was measured; files change at once."""
    report = _by_itself(published(report), variant)
    for figure in variant_figures(report, variant) if variant in report.perplexity else ():
        write_pictures(figure, svg(figure), folder / FIGURES)
    with replacing(folder / "README.md") as part:
        part.write_text(card, encoding="utf-8")


def write_results(plan: Plan, variant: str, report: Report, folder: Path) -> None:
    """Write what was measured on datasets of the Hub as `.eval_results/surgeon.yaml`, the form that the Hub reads.

    It names a dataset and one of its tasks for each value. Other texts have no name there, and stand in the card's
    `model-index` only; where there are no others, nothing is written.
    """
    results = eval_results(plan, variant, report)
    if results:
        with replacing(folder / RESULTS / "surgeon.yaml") as part:
            part.write_text(yaml.safe_dump(results, sort_keys=False, allow_unicode=True), encoding="utf-8")


def eval_results(plan: Plan, variant: str, report: Report) -> list[dict[str, Any]]:
    """Return the entries of `.eval_results`: perplexities of a variant by dataset, configuration as its task."""
    method, result = report.method, []
    for language, item in report.perplexity.get(variant, {}).items():
        where = plan.corpus.locations.get(language)
        if not isinstance(where, DatasetLocation) or not is_repository(where.dataset) or Path(where.dataset).exists():
            continue
        dataset = {"id": where.dataset, "task_id": where.config or "default"}
        if (revision := plan.corpus.revision(language)) is not None:
            dataset["revision"] = revision
        notes = (
            f"perplexity, lower is better; {report.language(language).name}, split {where.split}, "
            f"{item.tokens:,} tokens, "
            f"window {method['window']}, stride {method['stride']}, {method['precision']}; by surgeon"
        )
        if math.isfinite(item.perplexity):
            result.append({"dataset": dataset, "value": round(item.perplexity, 4), "notes": notes})
    return result


def _front_matter(plan: Plan, variant: str, inherited: SourceCard, report: Report | None) -> str:
    from huggingface_hub import ModelCardData

    base = base_model(plan.checkpoint.source.name)
    operations = [operation.kind for operation in plan.recipe.variants[variant].operations]
    results = list(_results(plan, variant, report))
    data = ModelCardData(
        library_name="transformers",
        base_model=base,
        base_model_relation="finetune" if base else None,  # of the Hub's relations the one that means other weights
        language=list(inherited.languages) or None,
        tags=["model-surgery", "surgeon", *dict.fromkeys(operations)],
        model_name=f"{plan.recipe.name}: {variant}" if results else None,
        eval_results=results or None,
        **inherited.fields,  # type: ignore[arg-type]
    )
    return data.to_yaml()


def base_model(source: str) -> str | None:
    """Return the Hub id of a source such as `hf://org/name@revision`; None for a folder or a builtin model."""
    name = source.removeprefix("hf://").partition("@")[0]
    return name if is_repository(name) and not Path(source).exists() else None


def _results(plan: Plan, variant: str, report: Report | None) -> Iterator[Any]:
    """Perplexities as the Hub's model-index has them; it holds no infinities."""
    from huggingface_hub import EvalResult

    known = plan.recipe.corpus == "builtin:udhr30"
    for language, item in (report.perplexity.get(variant, {}) if report is not None else {}).items():
        if math.isfinite(item.perplexity) and _LANGUAGE.fullmatch(language):
            yield EvalResult(
                task_type="text-generation",
                dataset_type="udhr" if known else "text",
                dataset_name="Universal Declaration of Human Rights" if known else "the recipe's own text",
                dataset_config=language,
                metric_type="perplexity",
                metric_name="perplexity",
                metric_value=round(item.perplexity, 4),
            )


def _why(plan: Plan, region: str) -> str:
    """Say how a region's entries were chosen; a point of a sweep has regions of its own."""
    spec, named = plan.recipe.regions.get(region), plan.corpus.language
    if spec is None:
        return ""
    parts = spec.kind.described(plan.recipe.score_of(region), lambda code: named(code).name)
    limits = [("in", spec.include), ("without", spec.exclude)]
    parts += [f"{word} {', '.join(names)}" for word, names in limits if names]
    if spec.layers is not None:
        parts.append(f"in layers {spec.layers[0]} to {spec.layers[1]}")
    return "; ".join(parts)
