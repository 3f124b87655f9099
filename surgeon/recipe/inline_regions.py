"""`freeze:` and `train_only:` that give a region's tokens in place of its name: the region is added under one."""

from __future__ import annotations

from collections.abc import Mapping

from surgeon.errors import Problem
from surgeon.recipe.lines import Node, replaced

POLARITIES = ("freeze", "train_only")


def named(tree: Node, problems: list[Problem]) -> Node:
    """Return the recipe in which every variant names what it freezes, or trains; `problems` gains clashes of names."""
    for variant, node in tree.mapping("variants").items():
        for polarity in POLARITIES:
            given = node.child(polarity)
            if given is None or not isinstance(given.value, Mapping):
                continue
            name = f"{variant}-tokens"
            if set(given.value) != {"tokens"}:
                problems.append(Problem(given.where, f"{polarity}: a region's name, or `{{tokens: [...]}}` alone"))
            elif name in tree.mapping("regions"):
                problems.append(Problem(given.where, f"region '{name}' is there already; rename it"))
            tree = replaced(tree, ("regions", name), given) or tree
            tree = replaced(tree, ("variants", variant, polarity), Node(name, given.where)) or tree
    return tree
