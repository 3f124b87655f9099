"""Draw the pictures of docs/gallery.md anew, and with them README's.

    python scripts/gallery.py                                     # those of the builtin model
    python scripts/gallery.py models/SmolLM2-135M-Instruct        # and those of SmolLM2

It runs the recipes into `out/`, where a finished run is found again, and copies their figures into `docs/figures/`.
Three pictures are made elsewhere: `tiny30-chat.png` is a photograph of a page in a browser, `claim5.svg` and
`growth.svg` come of the commands that docs/paper.md and docs/performance.md name.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import surgeon

ROOT = Path(__file__).parent.parent
# A recipe's figures, by the names that they have in the documentation.
FIGURES = {
    "zero_core": {"perplexity.png": "tiny30-perplexity.png", "scan.png": "tiny30-scan.png"},
    "sweep": {"sweep-zeroed.svg": "tiny30-sweep.svg"},
    "paper/claim4": {"ratios.svg": "tiny30-claim4.svg"},
    "scores": {"overlaps.svg": "tiny30-overlaps.svg"},
}
OF_SMOLLM2 = {"smollm2/zero_core": {"perplexity.png": "smollm2-perplexity.png", "scan.png": "smollm2-scan.png"}}


def draw(recipe: str, figures: dict[str, str], overrides: list[str]) -> None:
    """Run a recipe and copy its figures, with those for dark grounds where the documentation has them."""
    out = Path("out") / recipe.replace("/", "-")
    surgeon.apply(recipe, output=out, overrides=overrides)
    for made, shown in figures.items():
        for dark in ("", "-dark"):
            source, target = (Path(name).with_stem(Path(name).stem + dark) for name in (made, shown))
            if not dark or (ROOT / "docs" / "figures" / target).is_file():
                shutil.copy(out / "figures" / source, ROOT / "docs" / "figures" / target)
                print(f"docs/figures/{target}")


if __name__ == "__main__":
    for name, figures in FIGURES.items():
        draw(name, figures, [])
    for name, figures in OF_SMOLLM2.items() if len(sys.argv) > 1 else ():
        draw(name, figures, [f"model={sys.argv[1]}"])
