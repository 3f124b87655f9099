"""Stand-ins for the library that draws, for runs that are not about their pictures: these take most of a small run."""

from __future__ import annotations

import pytest
import vl_convert

PIXEL = (
    "89504e470d0a1a0a0000000d49484452000000010000000108060000001f15c489"
    "0000000d49444154789c6360606060000000050001a5f645400000000049454e44ae426082"
)
DRAWN = {
    "vegalite_to_svg": lambda spec: "<svg></svg>",
    "svg_to_png": lambda drawing, scale: bytes.fromhex(PIXEL),
    "javascript_bundle": lambda script: "",
}


def draw_nothing(patch: pytest.MonkeyPatch) -> None:
    for name, instead in DRAWN.items():
        patch.setattr(vl_convert, name, instead)
