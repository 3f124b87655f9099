"""Names whose digits are no numbers have a place in the order, too."""

from __future__ import annotations

from surgeon.anatomy.slots import _natural


def test_names_whose_digits_are_no_numbers() -> None:
    names = ["a.10.b", "a.2.b", "a.\u00b2.b", "a." + "9" * 5000]
    assert sorted(names, key=_natural)[:2] == ["a.2.b", "a.10.b"]
