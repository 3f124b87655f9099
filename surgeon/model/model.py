"""A model whose weights are the mapped checkpoint, and which of its parameters is which tensor on disk.

transformers gets views of the mapped files instead of loaded tensors, so building a model costs neither
time nor memory for its weights, and a parameter that still shares a view's memory afterwards *is* that
tensor: the mapping between model names and on-disk names (`slots.py`) is read off the addresses, not guessed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.errors import CheckpointError
from surgeon.freeze.bundle import ModelPlace
from surgeon.model.slots import Slot, bind

Precision = Literal["float32", "native"]


@dataclass(frozen=True)
class LoadedModel:
    """A model in evaluation mode. `parameters` maps on-disk tensor names to their places in the model."""

    checkpoint: Checkpoint
    model: Any
    tokenizer: Any
    parameters: Mapping[str, Slot]
    precision: Precision
    device: str


def resolve_precision(dtype: Literal["auto", "float32", "native"], device: str) -> Precision:
    """Turn `auto` into float32 on a CPU, where it is both faster and more exact, and native elsewhere."""
    if dtype == "auto":
        return "float32" if device == "cpu" else "native"
    return dtype


def load_tokenizer(checkpoint: Checkpoint) -> Any:
    """Load the tokenizer that lies beside the weights.

    Raises:
        CheckpointError: there is none, or transformers cannot read it.
    """
    import transformers

    try:
        return transformers.AutoTokenizer.from_pretrained(checkpoint.folder)
    except (OSError, ValueError, KeyError, TypeError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"{checkpoint.folder}: no usable tokenizer beside the weights ({first}); copy the tokenizer files there"
        ) from None


def load_model(checkpoint: Checkpoint, precision: Precision, device: str = "cpu") -> LoadedModel:
    """Build the model of a checkpoint over its mapped tensors.

    `native` keeps the weights' own dtype and shares the mapped memory (copy on write); `float32` widens
    them, four bytes a parameter.

    Raises:
        CheckpointError: the architecture is unknown to transformers, or tensors are missing.
    """
    import transformers

    views = {name: checkpoint.tensor(name) for name in checkpoint.tensors}
    model_class, config = _architecture(checkpoint)
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    verbosity = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        model, info = model_class.from_pretrained(
            None, config=config, state_dict=dict(views), dtype="auto", output_loading_info=True
        )
    finally:
        transformers.utils.logging.set_verbosity(verbosity)
    for problem, names in (("missing", info["missing_keys"]), ("of another shape", info["mismatched_keys"])):
        if names:
            first = sorted(str(name) for name in names)[0]
            raise CheckpointError(f"{checkpoint.folder}: tensor '{first}' is {problem} ({len(names)} in all)")
    model.eval()
    mapping = bind(model, views)
    if precision == "float32":
        model.float()
    model.to(device)
    return LoadedModel(checkpoint, model, load_tokenizer(checkpoint), mapping, precision, device)


def model_places(checkpoint: Checkpoint) -> dict[str, ModelPlace]:
    """Say where each on-disk tensor stands in the model class; nothing is read or allocated for it.

    Empty if transformers does not have the architecture; a tensor that the rules of `slots.py` do not know is
    left out.
    """
    import torch

    try:
        model_class, config = _architecture(checkpoint)
    except CheckpointError:
        return {}
    with torch.device("meta"):
        model = model_class(config)
        shapes = {name: torch.empty(info.shape) for name, info in checkpoint.tensors.items()}
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        stored: ModelPlace(names[id(slot.parameter)], tuple(slot.parameter.shape), slot.offset)
        for stored, slot in bind(model, shapes).items()
    }


def _architecture(checkpoint: Checkpoint) -> tuple[Any, Any]:
    import transformers

    if not checkpoint.config:
        raise CheckpointError(f"{checkpoint.folder}: no config.json, so the model cannot be built")
    if "auto_map" in checkpoint.config:
        raise CheckpointError(
            f"{checkpoint.folder}: the architecture is code inside the repository; surgeon runs only the "
            "architectures of transformers itself. Regions from a file, or random ones, still apply without running it"
        )
    try:
        config = transformers.AutoConfig.from_pretrained(checkpoint.folder)
        return transformers.MODEL_FOR_CAUSAL_LM_MAPPING[type(config)], config
    except (ValueError, KeyError) as error:
        kind = checkpoint.config.get("model_type", "(none)")
        raise CheckpointError(
            f"{checkpoint.folder}: model_type '{kind}' has no causal language model in transformers "
            f"{transformers.__version__} ({str(error).splitlines()[0]})"
        ) from None
