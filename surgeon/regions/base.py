"""What every kind of region is: its schema, what it is made of, its outline from headers, how it is made, its words."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

import numpy as np
from numpy.typing import NDArray

from surgeon.anatomy.anatomy import anatomy_of
from surgeon.checkpoint.address import last_part, without_paths
from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.checkpoint.naming import Place
from surgeon.checkpoint.storage import TensorInfo
from surgeon.errors import Problem, present
from surgeon.recipe.plain_yaml import KeyPath
from surgeon.region.mask import Indices
from surgeon.region.region import Region
from surgeon.region.units import Parts
from surgeon.regions.scopes import Scope, scope_of

if TYPE_CHECKING:
    from surgeon.recipe.reading import RecipeFile
    from surgeon.recipe.schema import RegionSpec
    from surgeon.regions.share import Share
    from surgeon.scores.base import Score

Shapes = dict[str, tuple[int, ...]]
# By tensor, float32: numpy's, or torch's on the device that made them; looked up again, they may be computed again.
Scores = Mapping[str, Any]
Stream = Iterator[tuple[int, str, Scores]]  # see `cut`
SUM = ""  # the label of the sum over languages, and of a score that knows none


@dataclass(frozen=True)
class RegionPlan:
    """A region to be made: its tensors, and at most how many of their entries it will select."""

    name: str
    spec: RegionSpec
    tensors: tuple[TensorInfo, ...]
    places: Mapping[str, Place]
    entries: int
    exact: bool
    score: Score | None = None  # that it is made by
    known: Region | None = None  # where it needs no score and no other region
    parts: Mapping[str, Parts] = field(default_factory=dict)  # by tensor, where whole units are selected
    leaves_out: tuple[str, ...] = ()  # what of its scope no entry can be selected of, and why
    written: str = ""  # its name in the recipe, where it is a copy at a point of a sweep

    @property
    def kind(self) -> RegionKind:
        """How it is made."""
        kind: RegionKind = self.spec.kind
        return kind

    @property
    def select(self) -> Share | None:
        """How its entries are selected by a score or by chance, if they are."""
        return self.spec.select

    @property
    def scope(self) -> Scope | None:
        """What each cut spans, if its entries are selected."""
        return scope_of(self.select) if self.select is not None else None

    @property
    def drawn_as(self) -> str:
        """The name that random draws go by beside the seed: copies at points of a sweep draw as what is written."""
        return self.written or self.name

    @property
    def numel(self) -> int:
        """Entries of all tensors in scope."""
        return sum(info.numel for info in self.tensors)

    def groups(self, tensors: Sequence[TensorInfo] | None = None) -> list[list[TensorInfo]]:
        """Tensors, all of the region's or some of them, that share one cut, in the order of the first of each."""
        groups: dict[Hashable, list[TensorInfo]] = {}
        for info in self.tensors if tensors is None else tensors:
            alone = self.parts[info.name].group if self.parts else info.name
            key = self.scope.group(alone, self.places[info.name]) if self.scope is not None else alone
            groups.setdefault(key, []).append(info)
        return list(groups.values())


@dataclass(frozen=True)
class Drawing:
    """A control that is drawn by the scores of the region `of`: those of a language, `label`, or their sum.

    `draw` returns the flat indices drawn in a tensor, from the region, the tensor's name and its scores.
    """

    plan: RegionPlan
    of: str
    label: str
    draw: Callable[[Region, str, NDArray[np.float32]], Indices]


@dataclass(frozen=True)
class Planning:
    """What an outline is made from; what does not fit the model goes to `problems`."""

    file: RecipeFile
    checkpoint: Checkpoint
    problems: list[Problem]

    def problem(self, key: KeyPath, what: str) -> None:
        """Add a problem at the line of a key of the recipe."""
        self.problems.append(self.file.problem(key, what))

    def whole(self, name: str, spec: RegionSpec, region: Region) -> RegionPlan:
        """Return the outline of a region that is known already."""
        region.metadata = without_paths(region.metadata)  # what a file says of where it was made
        tensors = tuple(self.checkpoint.tensors[tensor] for tensor in region)
        return RegionPlan(name, spec, tensors, self.places(tensors), region.entries, True, known=region)

    def places(self, tensors: Iterable[TensorInfo]) -> dict[str, Place]:
        """Return where tensors stand in the model."""
        places = anatomy_of(self.checkpoint).places
        return {info.name: places[info.name] for info in tensors}


@dataclass(frozen=True)
class Making:
    """What regions are made from: the model, other regions, and scores.

    `part` returns another region of the recipe, made if need be. `stream` gives the scores of a region once more, in
    units that are large enough for it.
    """

    checkpoint: Checkpoint
    plans: Mapping[str, RegionPlan]
    part: Callable[[str], Region]
    stream: Callable[[RegionPlan], Stream]


@dataclass(frozen=True)
class Provenance:
    """What the regions of a recipe are made from, of which their files may say something; `jobs` hash what is new."""

    checkpoint: Checkpoint
    corpus: str
    plans: Mapping[str, RegionPlan]
    jobs: int


class RegionKind:
    """Base of the kinds; each is also a pydantic model of what stands under its key in a recipe."""

    key: ClassVar[str]  # that names the kind in a region of a recipe
    description: ClassVar[str]  # of that key
    says_itself: ClassVar[bool] = False  # whether its file says more than which keys it was made from
    selects_itself: ClassVar[bool] = False  # whether it minds include, exclude and layers, which others are narrowed by

    if TYPE_CHECKING:

        def model_dump(self) -> Any:
            """Every kind is a pydantic model."""

    @classmethod
    def mentioned(cls, value: Any) -> Iterator[tuple[KeyPath, str]]:
        """Yield the regions that it is made from, and where below its key; `value` may be no valid region."""
        return iter(())

    @classmethod
    def renamed(cls, text: str, names: Mapping[str, str]) -> str:
        """Return the text of a place that mentions regions, with their new names."""
        return names.get(text, text)

    @property
    def parents(self) -> list[str]:
        """The regions that it is made from."""
        return [name for _, name in self.mentioned(self.model_dump())]

    @property
    def origin(self) -> str:
        """How it is made, in a word: top, bottom, random, or a key of the recipe such as file or combine."""
        return self.key

    @property
    def drawn_with(self) -> int | None:
        """The seed that its entries are drawn with; None if they are not drawn."""
        return None

    def pinned(self) -> RegionKind:
        """Return the kind with the revision of what it reads from the Hub."""
        return self

    def kept(self, plans: Mapping[str, RegionPlan]) -> bool:
        """True if it is kept by all that it depends on, since it takes scores, or all weights, to make it."""
        return False

    @abstractmethod
    def outline(self, planning: Planning, name: str, spec: RegionSpec, plans: Mapping[str, RegionPlan]) -> RegionPlan:
        """Return what the region will be, from headers alone; `plans` has those that it is made from."""

    def make(self, making: Making, plan: RegionPlan) -> Region:
        """Return the region; here one that is known already."""
        return present(plan.known)

    def selects(self) -> str:
        """Return what it selects, in the words of a plan's table."""
        return f"by {self.key}"

    def described(self, score: Score | None, named: Callable[[str], str]) -> list[str]:
        """Return how its entries were chosen, in the words of a model card.

        `score` is what it selects by, `named` returns a language's name by its code.
        """
        return [self.key]

    def drawing(self, checkpoint: Checkpoint, plan: RegionPlan, plans: Mapping[str, RegionPlan]) -> Drawing | None:
        """Return how it is drawn by the scores of another region; None if it is not."""
        return None

    def provenance(self, plan: RegionPlan, source: Provenance) -> dict[str, Any]:
        """Return what its file says of how it was made."""
        return made_from(plan, source)

    def bytes_to_make(self, largest: int) -> int:
        """Return the memory that making it takes beside scores and cuts, from the entries of its largest tensor."""
        return 0


def made_from(plan: RegionPlan, source: Provenance) -> dict[str, Any]:
    """Return the model and the keys of the recipe that a region is made from."""
    spec = plan.spec.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    return {"model": last_part(source.checkpoint.source.name), "made_from": without_paths(spec)}


def shapes_of(tensors: Iterable[TensorInfo]) -> Shapes:
    """Return the shapes of tensors by their names."""
    return {info.name: info.shape for info in tensors}


def no_masks(name: str) -> NoReturn:
    """Stand in for a region's masks where only its shapes are known."""
    raise AssertionError("a plan reads no masks")
