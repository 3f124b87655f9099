"""What the tests of freezing share: a tiny model on disk, a bundle beside it, and comparisons of raw bits.

One uses the safetensors package and torch integers only, the other `surgeon diff`; neither knows `surgeon.freeze`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.torch import load_file

import surgeon
from surgeon.freeze import write_bundle
from surgeon.region.region import Region

INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def tiny_model(dtype: torch.dtype = torch.float32, seed: int = 0, **changes: Any) -> Any:
    """A Llama with two layers and hidden size 32, its entries far from the initial state."""
    values = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": 64, "max_position_embeddings": 64, "tie_word_embeddings": False,
        "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2,
    }  # fmt: skip
    torch.manual_seed(seed)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**values, **changes}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.to(dtype)


def random_region(stored: dict[str, torch.Tensor], fraction: float = 0.05, seed: int = 3) -> Region:
    """Pick at least three entries of every tensor at random, whatever other tensors there are."""
    indices = {}
    for name, tensor in stored.items():
        generator = np.random.default_rng([seed, *name.encode()])
        count = max(3, int(fraction * tensor.numel()))
        indices[name] = np.sort(generator.choice(tensor.numel(), count, replace=False))
    return Region.from_indices(indices, {name: tuple(tensor.shape) for name, tensor in stored.items()})


def make_bundle(folder: Path, dtype: torch.dtype = torch.float32, fraction: float = 0.05, **changes: Any) -> Path:
    """Save a tiny model with a freeze bundle over all its tensors; returns the folder."""
    model = tiny_model(dtype, **changes)
    plant(model, fraction)
    model.save_pretrained(folder)
    stored = load_file(folder / "model.safetensors")
    ties = [["model.embed_tokens.weight", "lm_head.weight"]] if model.config.tie_word_embeddings else []
    region = random_region(stored, fraction)
    zeros = [stored[name].view(-1)[region.indices(name)[0]] for name in stored]
    assert all(float(zero) == 0.0 and bool(torch.signbit(zero)) for zero in zeros)
    write_bundle(folder, region, base={"name": "tiny", "revision": None}, ties=ties)
    return folder


def plant(model: Any, fraction: float) -> None:
    """Make the first entry that will be frozen of every tensor a negative zero, and the second one a denormal."""
    state = model.state_dict()
    region = random_region(state, fraction)
    for name, tensor in state.items():
        flat = tensor.view(-1)
        indices = torch.from_numpy(region.indices(name)[:2])
        flat[indices] = torch.tensor([-0.0, torch.finfo(flat.dtype).tiny / 4]).to(flat.dtype)[: len(indices)]


def load(folder: Path, dtype: torch.dtype | None = None) -> Any:
    """Load the model of a folder."""
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype or "auto")


def saved_state(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of the safetensors files of a folder."""
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def compare(base: Path, trained: dict[str, torch.Tensor], region: Region | None = None) -> tuple[int, int]:
    """Return how many entries differ in bits inside and outside of the region, all tensors together.

    Where the trained tensors are wider than the base's, the base's are widened, which is exact.
    """
    region = region or Region.load(base / "freeze" / "region.safetensors")
    inside = outside = 0
    for name, before in saved_state(base).items():
        after = trained[name].detach().cpu().contiguous()
        kind = INTEGERS[after.element_size()]
        differs = (before.to(after.dtype).view(kind) != after.view(kind)).numpy()
        mask = region.mask(name) if name in region else np.zeros(before.shape, dtype=np.bool_)
        inside += int((differs & mask).sum())
        outside += int((differs & ~mask).sum())
    return inside, outside


def signs_lost(base: Path, trained: dict[str, torch.Tensor]) -> int:
    """Return how many entries inside the region differ in bits and are the same number: zeros with another sign."""
    region = Region.load(base / "freeze" / "region.safetensors")
    count = 0
    for name, before in saved_state(base).items():
        if name in region:
            old, new = before.to(trained[name].dtype), trained[name].detach().cpu()
            signs = ((old == 0) & (new == 0) & (torch.signbit(old) != torch.signbit(new))).numpy()
            count += int((signs & region.mask(name)).sum())
    return count


def inside_by_diff(base: Path, trained: Path) -> tuple[int, int]:
    """Return how many entries `surgeon diff --region` compares inside the bundle's region, and how many changed."""
    found = surgeon.compare(base, trained, regions=[base / "freeze" / "region.safetensors"]).checkpoints
    assert found is not None
    assert all(tensor.kind in ("same", "changed", "retyped") for tensor in found.tensors)
    return found.inside(0).entries, found.inside(0).changed


def batches(count: int, rows: int = 2, length: int = 16, seed: int = 1) -> list[dict[str, torch.Tensor]]:
    """Random token batches with labels."""
    generator = torch.Generator().manual_seed(seed)
    tokens = [torch.randint(3, 64, (rows, length), generator=generator) for _ in range(count)]
    return [{"input_ids": token, "labels": token.clone()} for token in tokens]


def adamw(parameters: Any, **changes: Any) -> torch.optim.AdamW:
    """AdamW with a decay that moves every entry, gradient or none."""
    return torch.optim.AdamW(parameters, **{"lr": 1e-2, "weight_decay": 0.1, **changes})


def train(
    model: Any, optimizer: Any, steps: int = 3, *, seed: int = 1, clip: float | None = None, after: Any = None
) -> None:
    """Take some steps."""
    for batch in batches(steps, seed=seed):
        optimizer.zero_grad()
        model(**batch).loss.backward()
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        if after is not None:
            after()


def assert_held(base: Path, model: Any, frozen: Any) -> None:
    """No frozen entry of the model has moved, others have, and the proof says so."""
    inside, outside = compare(base, model.state_dict())
    assert inside == 0 < outside
    assert frozen.verify() == frozen.entries
