"""What a run has to come out at, by plain transformers and autograd on the whole model; nothing of surgeon is used.

Names on disk and names in a model may differ, and experts are fused in the one and apart in the other.
`save_pretrained` knows the way back: a model whose weights are replaced by their scores, or by numbers that say what
each is, is saved, and what lies under a tensor's name then is that tensor's scores, or its kind.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

MATRIX, NORM, VECTOR, OUTSIDE = 2.0, 3.0, 4.0, 5.0  # what a parameter is; whatever else is on disk is a buffer

Arrange = Callable[[dict[str, torch.Tensor], dict[str, torch.Tensor]], dict[str, torch.Tensor]]


@dataclass(frozen=True)
class Reference:
    """Names on disk; by these, kinds of parameters, and a matrix's axis of outputs where that is certain; scores of all
    languages together; perplexity by language."""

    stored: frozenset[str]
    kinds: dict[str, float]
    axes: dict[str, int]
    scores: dict[str, torch.Tensor]
    perplexity: dict[str, float]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Return all tensors of a checkpoint's files by name."""
    return {
        name: tensor for path in sorted(folder.glob("model*.safetensors")) for name, tensor in load_file(path).items()
    }


def load(class_name: str, folder: Path) -> tuple[Any, dict[str, Any]]:
    """Load a checkpoint as its users do; also returns the names that were missing or not expected."""
    import transformers

    model_class = getattr(transformers, class_name)
    model, info = model_class.from_pretrained(folder, output_loading_info=True, dtype=torch.float32)
    return model.eval(), {key: sorted(map(str, value)) for key, value in info.items() if value}


def halves(text: str) -> tuple[str, str]:
    """Return the half of a text that is scored on, and the one that is measured on: its lines alternate."""
    lines = [line for line in text.splitlines() if line.strip()]
    return "\n".join(lines[::2]) + "\n", "\n".join(lines[1::2]) + "\n"


def losses(model: Any, ids: Sequence[int], targets: Sequence[int]) -> torch.Tensor:
    """Return the negative log-likelihood of each target, one text at a time, without padding."""
    logits = model(input_ids=torch.tensor([list(ids)]), use_cache=False).logits
    return torch.nn.functional.cross_entropy(logits[0].float(), torch.tensor(list(targets)), reduction="none")


def perplexity(model: Any, tokenizer: Any, texts: dict[str, str], tokens: int, window: int) -> dict[str, float]:
    """Measure windows one after the other, each predicting as many tokens as it holds, the first of the text apart."""
    found = {}
    for language, text in texts.items():
        ids = tokenizer(halves(text)[1], add_special_tokens=False)["input_ids"][: tokens + 1]
        total, count = 0.0, 0
        for start in range(0, len(ids) - 1, window):
            inputs, targets = ids[start : start + window], ids[start + 1 : start + window + 1]
            with torch.no_grad():
                total += float(losses(model, inputs[: len(targets)], targets).double().sum())
            count += len(targets)
        found[language] = math.exp(total / count)
    return found


def importance(
    model: Any, tokenizer: Any, texts: dict[str, str], samples: int, length: int
) -> dict[int, torch.Tensor | None]:
    """Return |theta * gradient of the mean loss|, added over languages, by the parameter's id; None: no gradient."""
    parameters = {id(parameter): parameter for parameter in model.parameters()}
    found: dict[int, torch.Tensor | None] = dict.fromkeys(parameters)
    for text in texts.values():
        ids = tokenizer(halves(text)[0], add_special_tokens=False)["input_ids"]
        rows = [ids[start : start + length] for start in range(0, len(ids) - length + 1, length)][:samples]
        model.zero_grad(set_to_none=True)
        for row in rows:
            full = [*row[1:], 0]  # the last output is not counted
            (losses(model, row, full)[:-1].sum() / (len(rows) * (length - 1))).backward()
        for key, parameter in parameters.items():
            if parameter.grad is not None:
                score = (parameter.detach() * parameter.grad).abs()
                before = found[key]
                found[key] = score if before is None else before + score
    model.zero_grad(set_to_none=True)
    return found


def decoder_of(model: Any) -> Any:
    """Return the module that holds the text's layers."""
    found = model.get_decoder() if hasattr(model, "get_decoder") else model
    return found if isinstance(found, torch.nn.Module) else model


_DOWN, _UP = ("down", "w2", "fc2", "output_linear"), ("up", "gate", "w1", "w3", "v1", "fc1", "input_linear")


def outputs_of(model: Any, hidden: int) -> dict[int, torch.Tensor]:
    """Number the outputs of matrices, from 1, along the axis that they lie on; zero where that is not certain.

    Of a linear layer and of GPT-2's transposed one the class says it; of stacked experts, whose down projections give
    `hidden` outputs and whose others take as many inputs, the shape, if no other axis is as long.
    """
    from transformers.pytorch_utils import Conv1D

    found = {id(parameter): torch.zeros_like(parameter) for parameter in model.parameters()}
    for path, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            axis = None
            if isinstance(module, torch.nn.Linear | Conv1D) and parameter.dim() == 2:
                axis = 1 if isinstance(module, Conv1D) else 0
            elif "expert" in f"{path}.{name}" and "bias" not in name and list(parameter.shape[-2:]).count(hidden) == 1:
                first = parameter.dim() - 2  # of the two axes that are inputs and outputs
                wide = list(parameter.shape[-2:]).index(hidden)
                last = f"{path.rpartition('.')[2]}.{name}"
                if any(word in last for word in (*_DOWN, *_UP)):
                    axis = first + (wide if any(word in last for word in _DOWN) else 1 - wide)
            if axis is not None:
                shape = [-1 if at == axis else 1 for at in range(parameter.dim())]
                numbers = torch.arange(1.0, parameter.shape[axis] + 1).view(shape)
                found[id(parameter)] = numbers.expand(parameter.shape).contiguous()
    return found


def _axis(numbers: torch.Tensor) -> int | None:
    """Return the axis along which numbers grow, if they do along one."""
    if not bool((numbers > 0).all()):
        return None
    grows = [axis for axis in range(numbers.dim()) if bool((numbers.diff(dim=axis) != 0).any())]
    return grows[0] if len(grows) == 1 else None


def kinds_of(model: Any) -> dict[int, float]:
    """Say of each parameter, by its id, whether it is a matrix, a norm or another vector of a layer, or outside."""
    config = model.config.get_text_config(decoder=True)
    counts = {getattr(config, name, None) for name in ("num_hidden_layers", "decoder_layers", "num_layers")}
    found = {id(parameter): OUTSIDE for parameter in model.parameters()}
    if counts == {None}:  # BLT, whose text passes several stacks
        counts = {len(module) for path, module in model.named_modules() if path.endswith("layers")}
        lists = _lists(model, counts)
    else:
        lists = _lists(decoder_of(model), counts) or _lists(model, counts)
    for module in lists:
        for path, part in module.named_modules():
            for name, parameter in part.named_parameters(recurse=False):
                kind = MATRIX if parameter.dim() > 1 else VECTOR
                if "norm" in type(part).__name__.lower() or "norm" in f"{path.rpartition('.')[2]}.{name}":
                    kind = NORM
                found[id(parameter)] = kind
    return found


def _lists(root: Any, counts: set[Any]) -> list[Any]:
    """Return the lists of as many modules as the text has layers, but not of other towers."""
    found = {
        path: module
        for path, module in root.named_modules()
        if isinstance(module, torch.nn.ModuleList) and len(module) in counts and not _other_tower(path)
    }  # fmt: skip
    holders = {
        path.rpartition(".")[0]
        for path, module in found.items()
        if any(parameter.dim() > 1 for parameter in module.parameters())
    }
    return [module for path, module in found.items() if path.rpartition(".")[0] in holders]  # norms apart, too


_TOWERS = ("vision", "visual", "audio", "image", "qformer", "resampler", "speech", "mtp", "patcher")


def _other_tower(path: str) -> bool:
    return any(word in path for word in _TOWERS)


def on_disk(model: Any, values: dict[int, torch.Tensor], arrange: Arrange | None) -> dict[str, torch.Tensor]:
    """Return values of parameters, by id, under the names, and in the shapes, that the parameters have on disk."""
    kept = {id(parameter): parameter.detach().clone() for parameter in model.parameters()}
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        for parameter in model.parameters():
            parameter.copy_(values[id(parameter)])
        for buffer, _ in buffers:
            buffer.zero_()
        model.save_pretrained(folder)
        state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        for parameter in model.parameters():
            parameter.copy_(kept[id(parameter)])
        for buffer, value in buffers:
            buffer.copy_(value)
        saved = {name: tensor.clone() for name, tensor in weights(Path(folder)).items()}
        return arrange(saved, state) if arrange is not None else saved


def reference(
    model: Any, tokenizer: Any, texts: dict[str, str], sample: tuple[int, int, int, int], arrange: Arrange | None = None
) -> Reference:
    """Compute everything for a loaded model; `sample`: sequences and their length, tokens to measure and the window.

    `arrange` makes the tensors of the checkpoint of those that `save_pretrained` writes and of the model's state.
    """
    samples, length, tokens, window = sample
    kinds = kinds_of(model)
    marks = {id(parameter): torch.full_like(parameter, kinds[id(parameter)]) for parameter in model.parameters()}
    stored = on_disk(model, marks, arrange)
    found = importance(model, tokenizer, texts, samples, length)
    none = {id(parameter): torch.full_like(parameter, -1.0) for parameter in model.parameters()}
    scored = {key: none[key] if score is None else score for key, score in found.items()}
    scores = on_disk(model, scored, arrange)
    numbered = on_disk(model, outputs_of(model, model.get_input_embeddings().weight.shape[1]), arrange)
    axes = {name: axis for name, numbers in numbered.items() if (axis := _axis(numbers)) is not None}
    measured = perplexity(model, tokenizer, texts, tokens, window)
    found_kinds = {name: float(mark.flatten()[0]) for name, mark in stored.items() if mark.numel()}
    return Reference(frozenset(stored), found_kinds, axes, scores, measured)


def top(score: torch.Tensor, fraction: float) -> torch.Tensor:
    """Return the flat indices of the share of highest scores, sorted; of equal ones the first."""
    flat = score.flatten()
    order = torch.sort(flat, descending=True, stable=True).indices
    return order[: int(fraction * flat.numel())].sort().values
