"""The harness at work on a model that answers: tasks are found, requests made, answers turned into metrics."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import math
import os
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from surgeon.errors import EnvironmentFailure, InputError, SurgeonError, did_you_mean, reason
from surgeon.harness.folders import refuse_code, task_files
from surgeon.model.results import Figures, Quantity, Sums

_SEEDS = (0, 1234, 1234)  # of the harness's own command line: Python's, numpy's, and that of few-shot examples
_KEPT = ("doc_id", "doc_hash", "doc", "target", "filter", "filtered_resps")  # of a sample; the texts asked are long


@dataclass(frozen=True, eq=False)
class Tasks:
    """Tasks as the harness loads them. `foreign` says that some lie in folders that are not the harness's own."""

    loaded: Any
    limit: int | None
    foreign: bool

    @property
    def by_name(self) -> dict[str, Any]:
        """The tasks, by name, without the groups that they may be in."""
        return dict(self.loaded["tasks"])


def version() -> str:
    """Return the harness's version.

    Raises:
        EnvironmentFailure: it is not installed.
    """
    if find_spec("lm_eval") is None:
        raise EnvironmentFailure(
            "lm-evaluation-harness is not installed, which verify.tasks needs: `pip install '.[tasks]'` in a checkout"
        )
    from importlib.metadata import version as of

    return of("lm_eval")


def is_folder(name: str) -> bool:
    """True if a task is named by a folder or file, and not by a name that the harness knows."""
    return name.endswith(("/", ".yaml")) or name.startswith((".", "/", "~"))


def check(names: Sequence[str]) -> list[Path]:
    """Make sure that the harness is installed, and that folders of tasks hold no code; returns the folders.

    Raises:
        InputError: a folder is missing or holds code.
        EnvironmentFailure: the harness is not installed.
    """
    version()
    folders = [Path(os.path.expanduser(name)) for name in names if is_folder(name)]
    if folders:
        with quiet():
            from lm_eval.api import metrics, registry

            known = set(registry.metric_registry.keys())
            _ = metrics  # which fills the registry
    for folder in folders:
        if not folder.exists():
            raise InputError(f"{folder}: no such folder of tasks")
        refuse_code(folder, known)
    return folders


def load_tasks(names: Sequence[str], limit: int | None, fewshot: int | None) -> Tasks:
    """Load tasks, with the data that they ask about.

    Args:
        names: of the harness's own tasks, groups and tags, or folders and files of tasks, which may hold no code.
        limit: questions of each task, from the first; all if None.
        fewshot: examples before each question; as the task says if None.

    Raises:
        InputError: there is no such task, a folder holds code, or a task cannot be loaded.
        EnvironmentFailure: the harness is not installed, or data could not be had.
    """
    folders = check(names)
    with quiet():
        from lm_eval.tasks import TaskManager

        own = any(not is_folder(name) for name in names)
        manager = TaskManager(include_path=[str(f) for f in folders if f.is_dir()] or None, include_defaults=own)
        wanted: list[str] = []
        for name in names:
            wanted += _inside(manager, Path(os.path.expanduser(name))) if is_folder(name) else [_known(manager, name)]
        loaded = _loaded(manager, list(dict.fromkeys(wanted)), bool(folders))
    for task in loaded["tasks"].values():
        _set_examples(task, fewshot)
    return Tasks(loaded, limit, bool(folders))


def _inside(manager: Any, folder: Path) -> list[str]:
    """Return the tasks of a folder, or else its groups, or the one file that is named."""
    if folder.is_file():
        return [str(folder.resolve())]
    files = {path.resolve() for path in task_files(folder)}
    kinds = {
        name: entry.kind.name
        for name, entry in manager.task_index.items()
        if entry.yaml_path is not None and Path(entry.yaml_path).resolve() in files
    }
    names = [name for kind in ("TASK", "GROUP") for name in kinds if kinds[name] == kind]
    if not names:
        raise InputError(f"{folder}: no task in this folder: a YAML file with `task: NAME` is one")
    return [name for name in names if kinds[name] == kinds[names[0]]]


def _known(manager: Any, name: str) -> str:
    if name not in manager.task_index:
        meant = did_you_mean(name, manager.all_tasks) if len(name) > 2 else ""
        meant = meant if meant.startswith("; did you mean") else ""
        raise InputError(f"lm-evaluation-harness has no task '{name}'{meant}; a folder of tasks is named with a `/`")
    return name


def _loaded(manager: Any, names: list[str], foreign: bool) -> Any:
    with sandboxed(foreign):
        try:
            return manager.load(names)
        except (MemoryError, SurgeonError):
            raise
        except (ConnectionError, TimeoutError, OSError) as error:
            raise EnvironmentFailure(
                f"tasks {', '.join(names)}: their questions could not be had ({reason(error)}). Those of the harness's "
                "own tasks come from the Hub: run it once where the Hub can be reached, after which they lie in "
                "datasets' cache, or name a folder of tasks with its data (docs/tasks.md)"
            ) from None
        except Exception as error:  # tasks and their datasets raise what they like
            raise InputError(f"tasks {', '.join(names)}: the harness cannot load them ({reason(error)})") from None


def _set_examples(task: Any, fewshot: int | None) -> None:
    """Set the number of examples as the harness's own command does; a task that says 0 keeps to it."""
    said = task.get_config("num_fewshot")
    if fewshot is not None and said != 0:
        task.set_config(key="num_fewshot", value=fewshot)
    elif said is None:
        task.set_config(key="num_fewshot", value=0)


def evaluate(model: Any, tasks: Tasks) -> dict[str, Any]:
    """Have the harness ask a model all questions, and return its results.

    Raises:
        InputError: a task asks for what a text model cannot do, or runs what models answer.
    """
    with quiet(), sandboxed(tasks.foreign), _seeded():
        from lm_eval.evaluator import evaluate as run

        for task in tasks.by_name.values():
            task.set_fewshot_seed(seed=_SEEDS[2])
        try:
            return dict(run(lm=model, task_dict=tasks.loaded, limit=tasks.limit, bootstrap_iters=0, log_samples=True))
        except (MemoryError, SurgeonError):
            raise
        except Exception as error:
            names = ", ".join(tasks.by_name)
            raise InputError(f"tasks {names}: the harness cannot run them ({reason(error)})") from None


@contextlib.contextmanager
def sandboxed(foreign: bool) -> Iterator[None]:
    """Render templates, which could otherwise reach Python's own objects, in jinja's sandbox meanwhile."""
    from jinja2 import BaseLoader, StrictUndefined
    from jinja2.sandbox import SandboxedEnvironment
    from lm_eval import utils

    before = utils.env
    if foreign:
        utils.env = SandboxedEnvironment(loader=BaseLoader(), undefined=StrictUndefined, keep_trailing_newline=True)
        utils.env.filters["regex_replace"] = before.filters["regex_replace"]
    try:
        yield
    finally:
        utils.env = before


@contextlib.contextmanager
def _seeded() -> Iterator[None]:
    """Set the seeds that the harness's own command sets, and put the generators back."""
    import numpy

    python, of_numpy = random.getstate(), numpy.random.get_state()
    random.seed(_SEEDS[0])
    numpy.random.seed(_SEEDS[1])
    try:
        yield
    finally:
        random.setstate(python)
        numpy.random.set_state(of_numpy)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the harness's log and its bars from the terminal, and what the Hub's client tries again and again."""
    logs = [logging.getLogger(name) for name in ("lm_eval", "huggingface_hub", "datasets")]
    before = [log.level for log in logs]
    for log in logs:
        log.setLevel(logging.CRITICAL)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        for log, level in zip(logs, before, strict=True):
            log.setLevel(level)


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
        for one in logged:
            sample = {"task": task} | {key: one[key] for key in (*_KEPT, *one["metrics"]) if key in one}
            samples.append(json.loads(json.dumps(sample, default=str)))
    return Figures(groups, tuple(samples), tuple(quantities.values()))


def _as_sums(
    name: str, aggregation: Callable[..., Any] | None, items: Sequence[Any], value: float, better: bool
) -> tuple[Sums, Quantity]:
    from lm_eval.api import metrics

    worse: Literal["less", "more"] = "less" if better else "more"
    if aggregation is metrics.mean and all(isinstance(item, int | float) for item in items):
        share = name.startswith(("acc", "exact_match"))  # which each question has, or has not
        return Sums(tuple(map(float, items)), (1.0,) * len(items)), Quantity(
            name, name, "", worse, "difference", share=share
        )
    if aggregation is metrics.perplexity:
        return Sums(tuple(-item for item in items), (1.0,) * len(items)), Quantity(name, name, "", "more", "ratio")
    if aggregation is metrics.weighted_perplexity:
        totals, weights = zip(*items, strict=True)
        return Sums(tuple(-t for t in totals), tuple(map(float, weights))), Quantity(name, name, "", "more", "ratio")
    if aggregation is metrics.bits_per_byte:
        totals, weights = zip(*items, strict=True)
        nats = Sums(tuple(-t for t in totals), tuple(weight * math.log(2) for weight in weights))
        return nats, Quantity(name, name, "bits per byte", "more", "difference")
    return Sums((value,), (1.0,)), Quantity(name, name, "", worse, "difference")
