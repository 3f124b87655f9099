"""The harness's results as figures: its values, as sums over questions where they are means of some kind."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from typing import Any

from surgeon.harness.running import Tasks
from surgeon.model.results import Figures, Quantity, Sums

_KEPT = ("doc_id", "doc_hash", "doc", "target", "filter", "filtered_resps")  # of a sample; the texts asked are long


def told(results: dict[str, Any], tasks: Tasks) -> Figures:
    """Return what the harness found of a model.

    A metric that is a mean over questions, also one of logarithms or weighted by bytes or words, gets sums over the
    questions, and so an interval; of any other there is the value alone.
    """
    groups: dict[str, dict[str, Sums]] = {}
    quantities: dict[str, Quantity] = {}
    samples: list[dict[str, Any]] = []
    for task, logged in results["samples"].items():
        aggregations = tasks.by_name[task].aggregation()
        better = tasks.by_name[task].higher_is_better()
        for key, value in results["results"][task].items():
            metric, comma, chosen = key.partition(",")
            if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            items = [one[metric] for one in logged if one["filter"] == chosen and metric in one]
            name = metric if chosen == "none" else f"{metric} ({chosen})"
            sums, quantity = _as_sums(name, aggregations.get(metric), items, float(value), better.get(metric, True))
            groups.setdefault(task, {})[name] = sums
            quantities.setdefault(name, quantity)
        samples += [_sample(task, one) for one in logged]
    return Figures(groups, tuple(samples), tuple(quantities.values()))


def _as_sums(
    name: str, aggregation: Callable[..., Any] | None, items: Sequence[Any], value: float, better: bool
) -> tuple[Sums, Quantity]:
    from lm_eval.api import metrics

    worse = "less" if better else "more"
    if aggregation is metrics.mean and all(isinstance(item, int | float) for item in items):
        return Sums(tuple(map(float, items)), (1.0,) * len(items)), _share(name, items, worse)
    if aggregation is metrics.perplexity:
        return Sums(tuple(-item for item in items), (1.0,) * len(items)), Quantity(name, name, "", "more", "ratio")
    if aggregation is metrics.weighted_perplexity:
        totals, weights = zip(*items, strict=True)
        return Sums(tuple(-t for t in totals), tuple(map(float, weights))), Quantity(name, name, "", "more", "ratio")
    if aggregation is metrics.bits_per_byte:
        totals, weights = zip(*items, strict=True)
        nats = Sums(tuple(-t for t in totals), tuple(weight * math.log(2) for weight in weights))
        return nats, Quantity(name, name, "bits per byte", "more", "difference")
    return Sums((value,), (1.0,)), Quantity(name, name, "", worse, "difference")  # type: ignore[arg-type]


def _share(name: str, items: Sequence[float], worse: Any) -> Quantity:
    """Return a quantity of which it is a share that each question has or has not."""
    return Quantity(name, name, "", worse, "difference", share=name.startswith(("acc", "exact_match")))


def _sample(task: str, logged: dict[str, Any]) -> dict[str, Any]:
    found = {"task": task} | {key: logged[key] for key in (*_KEPT, *logged["metrics"]) if key in logged}
    return dict(json.loads(json.dumps(found, default=str)))
