"""Recipes by name or path, and what carrying one out would do; light, since `surgeon plan` is to be instant."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.checkpoint.sources import look_again
from surgeon.errors import InputError, close_to, did_you_mean
from surgeon.model import budgets
from surgeon.plan.check import NotHere, check_device, chosen_device
from surgeon.plan.duration import steps
from surgeon.plan.plan import Plan
from surgeon.plan.planning import make_plan
from surgeon.progress import Step
from surgeon.recipe.reading import load_recipe

_PACKAGE = Path(__file__).parent.parent
RECIPE_FOLDERS = (_PACKAGE / "recipes", _PACKAGE.parent / "recipes")


def shipped_recipes() -> dict[str, Path]:
    """Return the recipes shipped with the package by name, such as `zero_core` or `smollm2/zero_core`."""
    folder = next((folder for folder in RECIPE_FOLDERS if folder.is_dir()), None)
    if folder is None:
        return {}
    found = sorted(folder.rglob("*.yaml"), key=lambda path: (len(path.parts), path))
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in found}


def find_recipe(name: str | Path) -> Path:
    """Return the path of a recipe file, or of a shipped recipe by bare name.

    Raises:
        InputError: there is neither.
    """
    path, shipped = Path(os.path.expanduser(name)), shipped_recipes()
    if path.is_file():
        return path
    if str(name) in shipped:
        return shipped[str(name)]
    here = [str(file) for file in Path(path.parent).glob("*.y*ml")]
    close = close_to(str(name), [*shipped, *here])
    remedy = f"did you mean '{close}'?" if close else "`surgeon recipes` lists the shipped ones"
    raise InputError(f"{name}: no such recipe file, and no shipped recipe of that name; {remedy}")


def plan_recipe(
    recipe: str | Path,
    *,
    output: str | Path | None = None,
    overrides: Sequence[str] = (),
    device: str | None = None,
) -> Plan:
    """Read a recipe and the headers of its model, and return what `apply` would do; `device` is looked for, if given.

    One that is elsewhere can be planned for where `SURGEON_DEVICE_MEMORY` says how much memory it has.

    Raises:
        SurgeonError: the recipe, the model, the corpus or the device cannot be used.
    """
    look_again()
    path = find_recipe(recipe)
    file = load_recipe(path, overrides)
    checkpoint = Checkpoint.open(file.recipe.model)
    made = make_plan(file, checkpoint, Path(output if output is not None else file.recipe.output))
    lacking = check_device(chosen_device(device)) if device is not None and made.runs_model else None
    if lacking is not None and not isinstance(lacking, NotHere):
        raise lacking
    if lacking is not None and not budgets.device_memory_is_set():
        raise InputError(f"{lacking}; to plan for one elsewhere, say how much memory it has: {budgets.DEVICE}=80G")
    return made


def expected_steps(made: Plan, device: str = "cpu") -> list[Step]:
    """Return what `apply` would do, in order, and how many seconds each step may take on this machine.

    Of a device that is not here nothing is known.
    """
    chosen = chosen_device(device) if made.runs_model else "cpu"
    return steps(made, chosen) if check_device(chosen) is None else []


def copy_recipe(name: str, target: str | Path) -> Path:
    """Copy a shipped recipe into a folder, to be edited there.

    Raises:
        InputError: there is no such recipe, or the file exists.
    """
    shipped = shipped_recipes()
    if name not in shipped:
        raise InputError(f"no shipped recipe '{name}'{did_you_mean(name, shipped)}")
    destination = Path(target) / shipped[name].name
    try:
        with destination.open("xb") as file:  # also a link that leads nowhere is something that is there
            file.write(shipped[name].read_bytes())
    except FileExistsError:
        raise InputError(f"{destination} exists already; remove it or copy elsewhere with --output") from None
    return destination
