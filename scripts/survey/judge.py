"""Runs surgeon on one tiny model, as its command line does, and judges what came out by the reference."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import sys
import traceback
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import reference as plain
import torch

SAMPLES, LENGTH, TOKENS, WINDOW, FRACTION = 4, 32, 88, 32, 0.1  # the last window is shorter
SENTENCES = {
    "de": "Alle Menschen sind frei und gleich an Würde und Rechten geboren. ",
    "fr": "Tous les êtres humains naissent libres et égaux en dignité et en droits. ",
}
TEXTS = {name: "".join(f"{i}. {sentence}\n" for i in range(12)) for name, sentence in SENTENCES.items()}

_PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010806000000"
    "1f15c4890000000d49444154789c6360606060000000050001a5f645400000000049454e44ae426082"
)
# What the drawing library is to do instead of drawing, which takes longer than everything else.
NOT_DRAWN = {
    "vegalite_to_svg": lambda spec: "<svg></svg>",
    "svg_to_png": lambda drawing, scale: _PIXEL,
    "javascript_bundle": lambda script: "",
}

# Causal masks and rotary frequencies, which nobody takes for weights, and everyone computes anew.
_OLD_BUFFERS = re.compile(r"(attn|attention)\.(masked_)?bias$|inv_freq$")

_RECIPE = """\
version: 1
name: survey
model: {model}
corpus: {{de: {folder}/de.txt, fr: {folder}/fr.txt}}
regions:
  core:
    score: {{kind: grad_param, languages: [de, fr], samples: {samples}, sequence_length: {length}}}
    select: {{top: {fraction}}}
    exclude: [norm]
  bottom: {{control: {{of: core, draw: bottom}}}}
  rows: {{from: core, select: {{top: {fraction}, scope: output}}, exclude: [norm]}}
  drawn: {{select: {{random: {fraction}}}}}
variants:
  cut: {{operations: [{{zero: core}}]}}
  control: {{operations: [{{zero: bottom}}], write: false}}
  random: {{operations: [{{zero: drawn}}]}}
verify: {{tokens: {tokens}, window: {window}}}
output: {folder}/out
"""


@dataclass
class Found:
    """What is known of a family: its class (`right`, `refused`, ...), what is wrong, and what was seen."""

    name: str
    model: str
    verdict: str = "right"
    wrong: list[str] = field(default_factory=list)
    message: str = ""
    refused_at: str = ""
    whole: bool | None = None
    roles: dict[str, int] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    overlap: float | None = None
    perplexity_error: float | None = None
    ratio: float | None = None
    seconds: float = 0.0


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit code (-1: a traceback) and what it printed."""

    code: int
    out: str
    err: str


def command(*arguments: str | Path) -> Ended:
    """Run surgeon's command line in this process."""
    from surgeon.cli import main

    out, err, before = io.StringIO(), io.StringIO(), sys.argv
    sys.argv = ["surgeon", *map(str, arguments)]
    code = 0
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main()
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    except BaseException:
        err.write(traceback.format_exc())
        code = -1
    finally:
        sys.argv = before
    return Ended(code, out.getvalue(), err.getvalue())


def judge(name: str, class_name: str, model: Path, folder: Path, arrange: plain.Arrange | None = None) -> Found:
    """Run surgeon on a checkpoint, and compare; it writes to `folder`. `arrange` says how the tensors lie."""
    from transformers import AutoTokenizer

    found = Found(name, class_name)
    for language, text in TEXTS.items():
        (folder / f"{language}.txt").write_text(text, encoding="utf-8")
    settings = {"samples": SAMPLES, "length": LENGTH, "tokens": TOKENS, "window": WINDOW, "fraction": FRACTION}
    recipe = folder / "recipe.yaml"
    recipe.write_text(_RECIPE.format(model=model, folder=folder, **settings), encoding="utf-8")

    planned = command("plan", recipe, "--json")
    if not _goes_on(found, planned, "plan"):
        return found
    found.whole = json.loads(planned.out).get("held_whole")
    inspected = command("inspect", model, "--json")
    if _goes_on(found, inspected, "inspect"):
        found.roles = {role: count["tensors"] for role, count in json.loads(inspected.out)["roles"].items()}
    said = planned.out + command("plan", recipe).out + inspected.out
    applied = command("apply", recipe, "--device", "cpu", "--jobs", "1")
    if not _goes_on(found, applied, "apply"):
        return found
    tokenizer = AutoTokenizer.from_pretrained(model)
    loaded, told = plain.load(class_name, model)
    try:
        expected = plain.reference(loaded, tokenizer, TEXTS, (SAMPLES, LENGTH, TOKENS, WINDOW), arrange)
    except Exception as error:
        found.wrong.append(f"plain transformers cannot run it on text alone ({_one_line(error)}), surgeon does")
        found.verdict = "wrong"
        return found
    report = json.loads((folder / "out" / "report.json").read_text("utf-8"))
    _compare_cut(found, expected, model, folder / "out", said + applied.out + applied.err + json.dumps(report))
    _compare_rows(found, expected, folder / "out")
    _compare_drawn(found, expected, model, folder / "out")
    _compare_perplexity(found, "base", expected.perplexity, report)
    cut, told_of_cut = plain.load(class_name, folder / "out" / "variants" / "cut")
    if told_of_cut != told:
        found.wrong.append(f"the variant loads otherwise than the model: {told_of_cut}")
    _compare_perplexity(found, "cut", plain.perplexity(cut, tokenizer, TEXTS, TOKENS, WINDOW), report)
    before, after = (report["perplexity"][label]["de"]["perplexity"] for label in ("base", "cut"))
    found.ratio = after / before
    if found.wrong:
        found.verdict = "wrong" if any(not text.startswith("unsaid") for text in found.wrong) else "partial"
    return found


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _without_paths(text: str) -> str:
    return re.sub(r"\S*/(recipe\.yaml)", r"\1", re.sub(r"/\S*/(model|variants)\b", "MODEL", text))


def _goes_on(found: Found, ended: Ended, step: str) -> bool:
    """Note how a command ended; True if it did what it was to do."""
    if ended.code == 0:
        return True
    found.refused_at = step
    if ended.code == 2 and "Traceback" not in ended.err:
        found.verdict = "refused"
        lines = [line for line in ended.err.splitlines() if line.startswith("error:")]
        found.message = " | ".join(_without_paths(line[7:]) for line in lines)
    else:
        found.verdict = "traceback"
        found.message = f"exit code {ended.code}: {' | '.join(ended.err.strip().splitlines()[-4:])}"[:1500]
    return False


def _same_but(before: Path, after: Path) -> list[str]:
    """Return what differs beside the data of weights: headers, and files that are not the same.

    A second copy of the weights may not be there, since it would hold what was cut.
    """
    differ = []
    for path in sorted(before.iterdir()):
        other = after / path.name
        if path.name.startswith("consolidated"):
            differ += [f"{path.name} holds what was cut"] if other.exists() else []
        elif not other.is_file():
            differ.append(f"{path.name} is missing")
        elif path.suffix != ".safetensors":
            if path.read_bytes() != other.read_bytes():
                differ.append(f"{path.name} differs")
        else:
            left, right = path.read_bytes(), other.read_bytes()
            stop = 8 + int.from_bytes(left[:8], "little")
            if left[:stop] != right[:stop] or len(left) != len(right):
                differ.append(f"the header of {path.name} differs")
    return differ


def _changes(before: Path, after: Path) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Return the flat indices whose bits changed, by tensor, and what became anything but a zero."""
    left, right = plain.weights(before), plain.weights(after)
    changed, odd = {}, []
    for name, tensor in left.items():
        bits = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.uint8}[tensor.element_size()]
        old, new = tensor.reshape(-1).view(bits), right[name].reshape(-1).view(bits)
        changed[name] = torch.nonzero(old != new).flatten()
        if bool((new[changed[name]] != 0).any()):
            odd.append(f"{name} holds changed entries that are not zero")
    return changed, odd


def _kind(name: str) -> str:
    """Return a tensor's name with `*` in place of the numbers of layers and experts."""
    return re.sub(r"(?<=\.)\d+(?=\.|$)", "*", name)


def _is_said(name: str, said: str) -> bool:
    """True if what was printed names a tensor, its kind, or a module that it lies in with a `*` after it."""
    own, kind = name.split("."), _kind(name).split(".")
    prefixes = [
        ".".join(parts[:stop]) for parts in (own, kind) for stop in range(1, len(parts)) if parts[stop - 1] != "*"
    ]
    return name in said or _kind(name) in said or any(f"{prefix}.*" in said for prefix in prefixes)


def _compare_cut(found: Found, expected: plain.Reference, model: Path, out: Path, said: str) -> None:
    """Compare the cut variant: how much of each tensor, which entries, and that nothing else has changed."""
    variant = out / "variants" / "cut"
    found.wrong += _same_but(model, variant)
    before = plain.weights(model)
    changed, odd = _changes(model, variant)
    found.wrong += odd
    both = either = 0
    omitted, many, outside = [], [], []
    noise = 1e-6 * max(float(score.max()) for score in expected.scores.values() if score.numel())
    for name, indices in changed.items():
        kind = expected.kinds.get(name)
        if kind not in (plain.MATRIX, plain.VECTOR):
            if len(indices):
                outside.append(_kind(name))
            continue
        score = expected.scores[name]
        has_gradient = bool((score > noise).any())  # a key's bias has none but what rounding makes
        wanted = plain.top(score, FRACTION)
        zeros = int((before[name].reshape(-1)[wanted] == 0).sum())
        if not len(indices) and len(wanted) > zeros:
            if kind == plain.MATRIX or has_gradient:
                omitted.append(name)
            continue
        if kind == plain.MATRIX and has_gradient and abs(len(indices) - len(wanted)) > zeros:
            many.append(f"{len(indices)} of {_kind(name)} instead of {len(wanted)}")
        if has_gradient:
            wanted_there = wanted[before[name].reshape(-1)[wanted] != 0]
            shared = len(set(indices.tolist()) & set(wanted_there.tolist()))
            both += shared
            either += len(indices) + len(wanted_there) - shared
    found.overlap = both / either if either else None
    if either == 0:
        found.wrong.append("nothing was cut")
    elif both / either <= 0.999:
        found.wrong.append(f"overlap of regions {both / either:.4f}")
    beside = [name for name in before if name not in expected.stored and not _OLD_BUFFERS.search(name)]
    found.left_out = sorted({_kind(name) for name in (*omitted, *beside) if _is_said(name, said)})
    unsaid = sorted({_kind(name) for name in omitted if not _is_said(name, said)})
    found.wrong += [f"unsaid: not cut: {', '.join(unsaid)}"] if unsaid else []
    unsaid = sorted({_kind(name) for name in beside if not _is_said(name, said)})
    found.wrong += [f"unsaid: no part of the model: {', '.join(unsaid)}"] if unsaid else []
    found.wrong += [f"cut outside of the layers, or norms: {', '.join(sorted(set(outside)))}"] if outside else []
    found.wrong += [f"counts: {', '.join(sorted(set(many)))}"] if many else []


def _compare_rows(found: Found, expected: plain.Reference, out: Path) -> None:
    """Compare a region that takes a share of the entries behind each output of a matrix."""
    from surgeon.region.region import Region

    region = Region.load(out / "regions" / "rows.region.safetensors")
    wrong = set()
    for name in region:
        axis = expected.axes.get(name)
        if axis is not None and expected.kinds.get(name) == plain.MATRIX:
            mask = torch.from_numpy(region.mask(name)).movedim(axis, -1)
            if bool((mask.sum(dim=-2) != int(FRACTION * mask.shape[-2])).any()):
                wrong.add(_kind(name))
    found.wrong += [f"outputs on another axis: {', '.join(sorted(wrong))}"] if wrong else []


def _compare_drawn(found: Found, expected: plain.Reference, model: Path, out: Path) -> None:
    """Compare the variant of a region without a score: parameters of the layers, and nothing beside."""
    changed, _ = _changes(model, out / "variants" / "random")
    inside = (plain.MATRIX, plain.VECTOR, plain.NORM)
    beside = sorted({_kind(name) for name, at in changed.items() if len(at) and expected.kinds.get(name) not in inside})
    found.wrong += [f"a region drawn at random takes from {', '.join(beside)}"] if beside else []


def _compare_perplexity(found: Found, label: str, expected: dict[str, float], report: dict[str, Any]) -> None:
    for language, value in expected.items():
        measured = report["perplexity"][label][language]["perplexity"]
        error = abs(measured - value) / value
        if found.perplexity_error is None or not error <= found.perplexity_error:  # NaN is the largest
            found.perplexity_error = error
        if not error <= 1e-5:
            found.wrong.append(f"perplexity of {label} in {language} {measured:.8g}, by transformers {value:.8g}")


def as_line(found: Found) -> str:
    """Return a result as a line of JSON."""
    return json.dumps(asdict(found), ensure_ascii=False)


def one(name: str, folder: Path) -> Found:
    """Make the tiny model of a family, or of a layout, and judge what surgeon does with it."""
    from families import families
    from layouts import LAYOUTS, rearrange
    from tiny import make

    os.environ["SURGEON_CACHE"] = str(folder / "cache")
    (folder / "cache").mkdir()
    model, layout = folder / "model", LAYOUTS.get(name)
    kind, class_name = (layout.kind, layout.class_name) if layout is not None else families()[name][:2]
    try:
        made = make(kind, class_name, model, layout.config if layout is not None else ())
        if layout is not None:
            rearrange(layout, model, made.state_dict())
        loaded, told = plain.load(class_name, model)
        if "missing_keys" in told or (told and layout is None):
            return Found(name, class_name, "not made", message=f"transformers' own loading is not clean: {told}"[:500])
        del made, loaded
    except Exception as error:
        return Found(name, class_name, "not made", message=_one_line(error))
    return judge(name, class_name, model, folder, layout.arrange if layout is not None else None)
