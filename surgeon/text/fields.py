"""The text in a row of data: a field, one inside another (`translation.en`), or one of each message of a list."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from surgeon.errors import InputError, did_you_mean


def text_of(row: Mapping[str, Any], field: str, place: str) -> str:
    """Return the text of a row's field; several texts, as of a list of messages, are joined by line breaks.

    A dot leads into an object, unless the row has a field of just that name; of a list every item is taken.

    Args:
        row: names of fields, and what they hold.
        field: a name, or several with dots between.
        place: where the row stands, for messages.

    Raises:
        InputError: there is no such field, or it holds no text.
    """
    return "\n".join(_texts(row, [field] if field in row else field.split("."), (), place))


def _texts(value: Any, names: Sequence[str], above: tuple[str, ...], place: str) -> Iterator[str]:
    """Yield the texts that `names` lead to from a value that was found under the names `above`."""
    if value is None:
        return
    if isinstance(value, list | tuple):
        for item in _having(value, names):
            yield from _texts(item, names, above, place)
    elif names and isinstance(value, Mapping):
        if names[0] not in value:
            within = f" in '{'.'.join(above)}'" if above else ""
            raise InputError(f"{place}: no field '{names[0]}'{within}{did_you_mean(names[0], value)}")
        yield from _texts(value[names[0]], names[1:], (*above, names[0]), place)
    elif isinstance(value, str) and not names:
        yield value
    elif isinstance(value, Mapping):
        inner = [f"{'.'.join(above)}.{name}" for name in value]
        raise InputError(
            f"{place}: field '{'.'.join(above)}' holds objects and no text; write one of {', '.join(inner)}"
        )
    else:
        what = f"no field '{names[0]}'" if names else "no text"
        raise InputError(f"{place}: field '{'.'.join(above)}' holds {what} but {type(value).__name__}")


def _having(items: Sequence[Any], names: Sequence[str]) -> Sequence[Any]:
    """Return the items that have the field, such as those parts of a message that are text and no picture."""
    having = [item for item in items if names and isinstance(item, Mapping) and names[0] in item]
    return having or items
