"""Recipe and headers make a plan: what would be scored, selected, changed, written and measured.

Nothing but headers is read. Whatever in the recipe does not fit the model or the corpus is found here,
before a byte of a tensor is touched, and reported with its line.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.checkpoint.naming import natural_key, scope
from surgeon.checkpoint.quantized import refuse_quantized
from surgeon.checkpoint.remote import RemoteFile
from surgeon.checkpoint.sources import is_hub_file, pinned_file, refuse_output_inside
from surgeon.checkpoint.storage import DTYPE_BITS, TensorInfo
from surgeon.errors import InputError, Problem, RecipeError, SurgeonError, did_you_mean
from surgeon.operations import AnyOperation, open_donor
from surgeon.operations.edits import check_donor, touched_tensors
from surgeon.plan.regions import RegionPlan, no_masks, plan_regions, scorable
from surgeon.recipe.reading import RecipeFile
from surgeon.recipe.schema import GradParamScore, Recipe, SampledScore, ScoreSpec, TextSpec, WandaScore
from surgeon.region.region import Region
from surgeon.text.corpora import Corpus, Location, builtin_corpus
from surgeon.text.documents import DatasetLocation, FileLocation

_REPOSITORY = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}", re.ASCII)
_DOCUMENTS = 2000  # of a dataset, unless the recipe says how many
_BASELINE_BYTES = 60_000_000  # the interpreter with numpy
_TORCH_BYTES = 350_000_000  # torch and transformers loaded


@dataclass(frozen=True)
class VariantPlan:
    """A variant to be made; bytes are those of the whole checkpoint, or at most of the patch, it is written as."""

    name: str
    write: bool | Literal["patch"]
    operations: tuple[str, ...]
    tensors: int
    entries: int
    shards: int
    bytes_to_write: int


@dataclass(frozen=True)
class Plan:
    """Everything that `apply` will do, known from the recipe and the headers alone."""

    file: RecipeFile
    checkpoint: Checkpoint
    corpus: Corpus
    output: Path
    regions: Mapping[str, RegionPlan]
    variants: Mapping[str, VariantPlan]
    verify_languages: tuple[str, ...]
    peak_memory: int
    disk_needed: int

    @property
    def recipe(self) -> Recipe:
        """The recipe."""
        return self.file.recipe

    @property
    def needs_all_weights(self) -> bool:
        """True if the model is run, or written as a whole; a patch needs only the tensors that it changes."""
        written = any(variant.write is True for variant in self.variants.values())
        return written or self.recipe.verify is not None or bool(self.scores())

    @property
    def bytes_to_download(self) -> int:
        """Bytes of weight files that `apply` will fetch into the Hub's cache."""
        if not self.needs_all_weights:
            return 0
        return sum(header.file_size for header in self.checkpoint.headers if isinstance(header.path, RemoteFile))

    def scored_tensors(self, score: ScoreSpec) -> tuple[TensorInfo, ...]:
        """Tensors to score: all decoder-layer parameters, so that recipes share scores, and what regions add."""
        reach = scope(self.checkpoint)
        chosen = {info.name: info for info in reach.tensors if scorable(score, info, reach.places[info.name])}
        for region in self.regions.values():
            if region.score == score:
                chosen |= {info.name: info for info in region.tensors}
        return tuple(chosen[name] for name in sorted(chosen, key=natural_key))

    def scores(self) -> list[ScoreSpec]:
        """The distinct scores that the regions need."""
        distinct: list[ScoreSpec] = []
        for region in self.regions.values():
            if region.score is not None and region.score not in distinct:
                distinct.append(region.score)
        return distinct


def make_plan(file: RecipeFile, checkpoint: Checkpoint, output: Path) -> Plan:
    """Plan a recipe on a checkpoint.

    Raises:
        RecipeError: the recipe does not fit the model or the corpus; all misfits at once.
        CheckpointError: the checkpoint is quantized.
        InputError: the output lies inside the source or a hub cache, or the corpus does not exist.
    """
    recipe = file.recipe
    refuse_output_inside(output, checkpoint.source.path)
    refuse_quantized(checkpoint)
    corpus = open_corpus(recipe)
    problems = list(_language_problems(file, corpus))
    regions = plan_regions(file, checkpoint, problems)
    problems += _donor_problems(file, checkpoint, regions)
    problems += _push_problems(file)
    if problems:
        raise RecipeError(problems)
    variants = {name: _plan_variant(recipe, checkpoint, name, regions) for name in recipe.variants}
    languages: tuple[str, ...] = ()
    if recipe.verify is not None:
        chosen = recipe.verify.languages
        languages = tuple(corpus.languages if chosen == "all" else dict.fromkeys(chosen))
    partial = Plan(file, checkpoint, corpus, output, regions, variants, languages, 0, 0)
    return Plan(
        file, checkpoint, corpus, output, regions, variants, languages, _peak_memory(partial), _disk_needed(partial)
    )


def open_corpus(recipe: Recipe) -> Corpus:
    """Open the corpus a recipe names; no text is read.

    Raises:
        InputError: there is no such corpus.
    """
    if isinstance(recipe.corpus, str):
        if not recipe.corpus.startswith("builtin:"):
            raise InputError(
                f"corpus: {recipe.corpus!r} is no corpus; write builtin:udhr30, or a mapping of languages such as "
                "{ar: texts/ar.txt}"
            )
        return builtin_corpus(recipe.corpus.removeprefix("builtin:"))
    locations: dict[str, Location] = {}
    for language, text in recipe.corpus.items():
        if isinstance(text, str):
            locations[language] = FileLocation(Path(text).expanduser())
        elif text.file is not None:
            locations[language] = FileLocation(Path(text.file).expanduser(), text.field, text.documents)
        else:
            locations[language] = DatasetLocation(
                str(text.dataset), text.config, text.split, text.field, text.revision, text.documents or _DOCUMENTS
            )
    return Corpus("of the recipe", locations)


def _language_problems(file: RecipeFile, corpus: Corpus) -> Iterator[Problem]:
    recipe = file.recipe
    if isinstance(recipe.corpus, dict):
        for language, where in corpus.locations.items():
            if isinstance(where, FileLocation) and not where.path.is_file():
                yield file.problem(("corpus", language), f"no such text file: {where}")
    known = corpus.languages
    for name, spec in recipe.regions.items():
        for i, language in enumerate(spec.score.languages if isinstance(spec.score, SampledScore) else ()):
            if language not in known:
                what = f"the corpus has no text for language '{language}'{did_you_mean(language, known)}"
                yield file.problem(("regions", name, "score", "languages", i), what)
    if recipe.verify is not None:
        for i, language in enumerate(recipe.verify.languages if recipe.verify.languages != "all" else ()):
            if language not in known:
                what = f"the corpus has no text for language '{language}'{did_you_mean(language, known)}"
                yield file.problem(("verify", "languages", i), what)
        measured = known if recipe.verify.languages == "all" else recipe.verify.languages
        for i, expectation in enumerate(recipe.verify.expect):
            if expectation.language is not None and expectation.language not in measured:
                what = (
                    f"language '{expectation.language}' is not measured{did_you_mean(expectation.language, measured)}"
                )
                yield file.problem(("verify", "expect", i, "language"), what)


def _donor_problems(file: RecipeFile, checkpoint: Checkpoint, regions: Mapping[str, RegionPlan]) -> Iterator[Problem]:
    for name, variant in file.recipe.variants.items():
        for i, operation in enumerate(variant.operations):
            if operation.donor is not None:
                shapes = {info.name: info.shape for info in regions[operation.region].tensors}
                try:
                    check_donor(checkpoint, operation.donor, Region(shapes, no_masks))
                except InputError as error:
                    yield file.problem(("variants", name, "operations", i, "from"), str(error))


def _push_problems(file: RecipeFile) -> Iterator[Problem]:
    recipe = file.recipe
    if recipe.push is None:
        return
    for i, name in enumerate(recipe.push.variants or ()):
        key = ("push", "variants", i)
        if name not in recipe.variants:
            yield file.problem(key, f"no variant '{name}'{did_you_mean(name, recipe.variants)}")
        elif recipe.variants[name].write is not True:
            yield file.problem(key, f"variant '{name}' is not written as a whole checkpoint, so it cannot be pushed")
    names = recipe.pushed_variants()
    if not names:
        yield file.problem(("push",), "no variant is written, so there is nothing to push")
    places = [recipe.push.place(name) for name in names]
    if len(set(places)) < len(places):
        what = 'several variants would go to one place; put {variant} into `repo`, or `revision: "{variant}"`'
        yield file.problem(("push", "repo"), what)
    for repo in dict.fromkeys(repo for repo, _ in places):
        if not _REPOSITORY.fullmatch(repo):
            yield file.problem(("push", "repo"), f"'{repo}' cannot name a repository; it has the form org/name")


def _plan_variant(recipe: Recipe, checkpoint: Checkpoint, name: str, regions: Mapping[str, RegionPlan]) -> VariantPlan:
    spec = recipe.variants[name]
    used = {operation.region: regions[operation.region] for operation in spec.operations}
    shapes = {
        label: Region({info.name: info.shape for info in region.tensors}, no_masks) for label, region in used.items()
    }
    touched = touched_tensors(checkpoint, spec.operations, shapes)
    operations = [f"{operation.kind} {operation.region}" for operation in spec.operations]
    return VariantPlan(
        name,
        spec.write,
        tuple(operations + ([f"freeze {spec.freeze}"] if spec.freeze is not None else [])),
        len(touched),
        sum(region.entries for region in used.values()),
        len({checkpoint.tensors[tensor].path for tensor in touched}),
        _bytes_to_write(spec.write, checkpoint, used.values()),
    )


def _bytes_to_write(write: bool | Literal["patch"], checkpoint: Checkpoint, regions: Iterable[RegionPlan]) -> int:
    if write != "patch":
        return checkpoint.data_bytes if write else 0
    total = 0
    for region in regions:
        width = max((DTYPE_BITS[info.dtype] // 8 for info in region.tensors), default=0)
        total += region.entries * width + _mask_bytes(region)
    return total


def _mask_bytes(region: RegionPlan) -> int:
    return min(math.ceil(region.entries * 1.3), region.numel // 8)


def _peak_memory(plan: Plan) -> int:
    """Estimate the peak of anonymous memory in bytes; mapped files are not counted, they page out."""
    checkpoint, recipe = plan.checkpoint, plan.recipe
    largest = max((info.numel for region in plan.regions.values() for info in region.tensors), default=0)
    densest = max((region.entries / max(region.numel, 1) for region in plan.regions.values()), default=0.0)
    writing = int(largest * densest) * 40
    if checkpoint.is_remote and not plan.needs_all_weights:  # a tensor on the Hub is fetched into memory
        writing += max((info.nbytes for region in plan.regions.values() for info in region.tensors), default=0)
    scores = plan.scores()
    selecting = 24 * min(largest, 1 << 22) + 12 * largest if scores else 0
    running = [_scoring_memory(checkpoint, score, largest) for score in scores if isinstance(score, SampledScore)]
    if not running and recipe.verify is None:
        return _BASELINE_BYTES + max(writing, selecting)
    widened = 4 * sum(info.numel for info in checkpoint.tensors.values() if info.dtype != "F32")
    if recipe.verify is not None:
        running.append(_activations(checkpoint, recipe.verify.batch_size * recipe.verify.window, False))
    return _TORCH_BYTES + widened + max(*running, selecting, writing)


def _scoring_memory(checkpoint: Checkpoint, score: SampledScore, largest: int) -> int:
    backward = isinstance(score, GradParamScore)
    gradient = 4 * largest if backward else 0
    return _activations(checkpoint, score.batch_size * score.sequence_length, backward) + gradient


def _activations(checkpoint: Checkpoint, tokens: int, backward: bool) -> int:
    config = {**checkpoint.config, **(checkpoint.config.get("text_config") or {})}
    hidden = int(config.get("hidden_size") or config.get("n_embd") or 0)
    wide = int(config.get("intermediate_size") or config.get("n_inner") or 4 * hidden)
    layers = int(config.get("num_hidden_layers") or config.get("n_layer") or 0)
    vocabulary = int(config.get("vocab_size") or 0)
    kept = layers if backward else 1
    return 4 * tokens * (kept * (12 * hidden + 5 * wide) + (4 if backward else 3) * vocabulary)


def _disk_needed(plan: Plan) -> int:
    variants = sum(variant.bytes_to_write for variant in plan.variants.values())
    scores = sum(
        4 * info.numel * len(dict.fromkeys(score.languages))
        for score in plan.scores()
        if isinstance(score, GradParamScore | WandaScore)
        for info in plan.scored_tensors(score)
    )
    regions = sum(_mask_bytes(region) for region in plan.regions.values())
    return variants + scores + 2 * regions + plan.bytes_to_download


def pinned_operations(operations: Sequence[AnyOperation]) -> list[AnyOperation]:
    """Return operations with the commits of donors that came from the Hub."""
    return [
        operation.model_copy(update={"from_": _pinned_name(operation.donor)})
        if operation.donor is not None
        else operation
        for operation in operations
    ]


def _pinned_name(donor: str) -> str:
    try:
        return pinned_file(donor) if is_hub_file(donor) else open_donor(donor).pinned
    except SurgeonError:  # what a sweep will put something else in the place of
        return donor


def pinned(plan: Plan) -> Recipe:
    """Return the recipe as it was written, with the commits of what came from the Hub."""
    recipe = plan.file.as_written
    variants = {}
    for name, variant in recipe.variants.items():
        variants[name] = variant.model_copy(update={"operations": pinned_operations(variant.operations)})
    corpus = recipe.corpus
    if isinstance(corpus, dict):
        corpus = {
            language: text.model_copy(update={"revision": plan.corpus.revision(language) or text.revision})
            if isinstance(text, TextSpec)
            else text
            for language, text in corpus.items()
        }
    regions = {
        name: region.model_copy(update={"file": pinned_file(region.file)}) if region.file is not None else region
        for name, region in recipe.regions.items()
    }
    return recipe.model_copy(
        update={
            "model": plan.checkpoint.source.pinned,
            "corpus": corpus,
            "regions": regions,
            "variants": variants,
        }
    )
