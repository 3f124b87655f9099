"""Who works at a recipe: this process alone, or it and others that a launcher has started (`surgeon.ranks`).

All processes of a team run the same steps on the same items. Each does its own items; what comes of them goes to the
process that carries out the recipe, in the items' order, so that nothing that is made of it depends on how many there
are. Code that takes a `Team` does not ask how many work, nor which of them it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class Job(Protocol):
    """What the other processes help with; it can be pickled."""

    def help(self, place: Any) -> None:
        """Do this process's part, at a `model.workplace.Workplace`."""


class Team(Protocol):
    """The processes that work at a recipe."""

    def begin(self, job: Job) -> None:
        """Have the others help with a job that this process is about to do as well."""

    def own(self, items: Sequence[Item]) -> list[Item]:
        """Return the items that this process does; the same ones wherever there are as many items."""

    def map(self, do: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
        """Do this process's items, each when its turn comes; yield all results, in order, where the recipe is run.

        Elsewhere there are no results, and own items are done when the first one is asked for.
        """

    def divided(self, items: Sequence[Item], able: bool = True) -> list[list[Item]]:
        """Deal items out to the processes that are `able` to do them: a list for each process, to be mapped over."""

    def everyones(self, value: Item) -> list[Item]:
        """Return what each process has; the first is that of the one that carries out the recipe."""

    def local(self, folder: str) -> str:
        """Return where this process finds the files of a model that a job has named."""


class Alone:
    """A team of one."""

    def begin(self, job: Job) -> None:
        """Nobody helps."""

    def own(self, items: Sequence[Item]) -> list[Item]:
        """All items."""
        return list(items)

    def map(self, do: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
        """Do all items in their order."""
        return map(do, items)

    def divided(self, items: Sequence[Item], able: bool = True) -> list[list[Item]]:
        """All items are for this process."""
        return [list(items)]

    def everyones(self, value: Item) -> list[Item]:
        """Return the only one."""
        return [value]

    def local(self, folder: str) -> str:
        """Files are where they are."""
        return folder


ALONE = Alone()
