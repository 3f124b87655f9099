"""Step 1 of `builtin:tiny30`: train the tokenizer and turn the texts into token files.

    python prepare.py --corpus CORPUS --declaration ../../surgeon/assets/udhr30/score --output WORK

`CORPUS` holds `LANG.txt.xz`, one paragraph a line. The declaration folder must be the scoring half: the
evaluation half is refused. Writes `WORK/tokenizer/` and `WORK/tokens.safetensors` (arrays named
`split/source/LANG`).
"""

from __future__ import annotations

import argparse
import lzma
from collections.abc import Iterator
from pathlib import Path

import numpy
from safetensors.numpy import save_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

BOUNDARY = "<|endoftext|>"
WORDS = r" ?[\p{L}\p{M}]+| ?\p{N}| ?[^\s\p{L}\p{M}\p{N}]+|\s+"
TOKENIZER_CHARACTERS = 260_000
DECLARATION_REPEATS = 8
VALIDATION_CHARACTERS = 4_000
CONTEXT = 1024


def read_corpus(folder: Path) -> dict[str, list[str]]:
    """Read the paragraphs of every `LANG.txt.xz`."""
    texts = {}
    for path in sorted(folder.glob("*.txt.xz")):
        with lzma.open(path, "rt", encoding="utf-8", newline="\n") as file:
            texts[path.name.split(".")[0]] = file.read().splitlines()
    return texts


def read_declaration(folder: Path) -> dict[str, list[str]]:
    """Read the paragraphs of the declaration's scoring half."""
    if folder.resolve().name != "score":
        raise SystemExit(f"{folder}: not the scoring half; the evaluation half must never be trained on")
    return {path.stem: path.read_text(encoding="utf-8").splitlines() for path in sorted(folder.glob("*.txt"))}


def head_of(paragraphs: list[str], characters: int) -> list[str]:
    """Return the first paragraphs that hold about so many characters."""
    total = 0
    for index, paragraph in enumerate(paragraphs):
        total += len(paragraph)
        if total >= characters:
            return paragraphs[: index + 1]
    return paragraphs


def train_tokenizer(
    corpus: dict[str, list[str]], declaration: dict[str, list[str]], vocabulary: int
) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer on as many characters of every language, whatever its share of the corpus."""

    def sample() -> Iterator[str]:
        for language in sorted(declaration):
            yield from head_of(corpus.get(language, []), TOKENIZER_CHARACTERS)
            yield from declaration[language] * DECLARATION_REPEATS

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[BOUNDARY],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sample(), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOUNDARY,
        eos_token=BOUNDARY,
        pad_token=BOUNDARY,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def encode(tokenizer: PreTrainedTokenizerFast, paragraphs: list[str]) -> numpy.ndarray:
    """Encode the paragraphs, each with its line end, into one array of token numbers."""
    pieces = tokenizer([f"{paragraph}\n" for paragraph in paragraphs], add_special_tokens=False)["input_ids"]
    return numpy.fromiter((token for piece in pieces for token in piece), dtype=numpy.uint16)


def encode_all(
    tokenizer: PreTrainedTokenizerFast, corpus: dict[str, list[str]], declaration: dict[str, list[str]], held_out: int
) -> dict[str, numpy.ndarray]:
    """Encode every language, holding out the head of the corpus and the last paragraphs of the declaration."""
    arrays = {}
    for language, paragraphs in corpus.items():
        count = len(head_of(paragraphs, VALIDATION_CHARACTERS))
        arrays[f"validation/corpus/{language}"] = encode(tokenizer, paragraphs[:count])
        arrays[f"train/corpus/{language}"] = encode(tokenizer, paragraphs[count:])
    for language, paragraphs in declaration.items():
        count = len(paragraphs) - held_out
        arrays[f"validation/declaration/{language}"] = encode(tokenizer, paragraphs[count:])
        arrays[f"train/declaration/{language}"] = encode(tokenizer, paragraphs[:count])
    return arrays


def main() -> None:
    """Parse the arguments, train, encode, write, and print the number of tokens per language."""
    parser = argparse.ArgumentParser(description="Train the tokenizer and make the token files.")
    parser.add_argument("--corpus", type=Path, required=True, help="folder of LANG.txt.xz")
    parser.add_argument("--declaration", type=Path, required=True, help="the scoring half of the declaration")
    parser.add_argument("--output", type=Path, required=True, help="working folder to write")
    parser.add_argument("--vocabulary", type=int, default=6144, help="tokens in the vocabulary (default: %(default)s)")
    parser.add_argument(
        "--held-out", type=int, default=5, help="last paragraphs of the declaration kept for validation"
    )
    arguments = parser.parse_args()

    corpus = read_corpus(arguments.corpus)
    declaration = read_declaration(arguments.declaration)
    tokenizer = train_tokenizer(corpus, declaration, arguments.vocabulary)
    arguments.output.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(arguments.output / "tokenizer")
    arrays = encode_all(tokenizer, corpus, declaration, arguments.held_out)
    save_file(arrays, arguments.output / "tokens.safetensors")
    for name, array in sorted(arrays.items()):
        print(f"{name} {len(array)}")


if __name__ == "__main__":
    main()
