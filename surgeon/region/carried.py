"""Regions on their way from rank 0 to the others: as the bytes of their files, a piece at a time."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

from surgeon import ranks
from surgeon.region.region import Region

_FILE = "{}.region.safetensors"


def share_regions(sets: Mapping[str, Mapping[str, Region]]) -> None:
    """Hand named sets of named regions to all ranks, which `receive_regions`; one in several sets goes once."""
    regions: dict[int, Region] = {}
    for of_set in sets.values():
        regions |= {id(region): region for region in of_set.values()}
    numbers = {key: number for number, key in enumerate(regions)}
    ranks.share({name: {label: numbers[id(region)] for label, region in found.items()} for name, found in sets.items()})
    with TemporaryDirectory() as folder:
        path = Path(folder) / _FILE.format("shared")
        for region in regions.values():
            region.save(path)
            ranks.share_file(path)


def receive_regions(stack: ExitStack) -> dict[str, dict[str, Region]]:
    """Return what rank 0 hands over by `share_regions`; it lies in a temporary folder until the stack is closed."""
    sets = ranks.share()
    folder = Path(stack.enter_context(TemporaryDirectory()))
    count = 1 + max((number for of_set in sets.values() for number in of_set.values()), default=-1)
    regions = []
    for number in range(count):
        path = folder / _FILE.format(number)
        ranks.share_file(path)
        regions.append(Region.load(path))
    return {name: {label: regions[number] for label, number in found.items()} for name, found in sets.items()}
