"""The figures of a report as files: SVG for papers and pages, PNG for places that show only pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from surgeon.checkpoint.storage import replacing
from surgeon.report.data import Report
from surgeon.report.figures import figures
from surgeon.report.svg import Figure

ZOOM = 1.5  # pixels per unit of the drawing
# Second views of what other figures show; rendering costs a tenth of a second each, and a run may have fifty.
SVG_ONLY = ("-by-family", "-by-effect", "-rows", "-columns")


def write_figures(report: Report, folder: Path, drawn: Sequence[Figure] | None = None) -> list[Path]:
    """Write every figure of a report as NAME.svg, and all but second views as NAME.png; return the files.

    Args:
        report: what to draw.
        folder: where to write; made if it is missing.
        drawn: the report's figures, if they have been drawn already.
    """
    files = []
    for figure in figures(report) if drawn is None else drawn:
        drawing = figure.standalone()
        contents = {".svg": drawing.encode("utf-8")}
        if not figure.name.endswith(SVG_ONLY):
            contents[".png"] = png(drawing)
        for suffix, content in contents.items():
            path = folder / f"{figure.name}{suffix}"
            with replacing(path) as staged:
                staged.write_bytes(content)
            files.append(path)
    return files


def png(drawing: str) -> bytes:
    """Render an SVG drawing. Its letters are Lato, from a package, so that a machine without fonts draws the same.

    Letters that Lato lacks are taken from the machine's fonts, if it has any.
    """
    import font_lato
    from resvg_py import svg_to_bytes

    fonts = [str(path) for path in sorted(Path(font_lato.__file__).parent.glob("files/Lato-*.ttf"))]
    return svg_to_bytes(svg_string=drawing, zoom=ZOOM, font_files=fonts, sans_serif_family="Lato")
