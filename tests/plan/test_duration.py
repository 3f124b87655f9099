"""How long a plan takes: counted from headers, and said before it starts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers

from surgeon.api import plan_recipe
from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.model import budgets
from surgeon.plan.duration import Speed, active_entries, steps, tried_speed
from surgeon.plan.elsewhere import device_needs
from surgeon.plan.needs import shape_of


def test_the_steps_are_those_of_the_run_and_scale_with_the_work(recipe: Callable[..., Path]) -> None:
    def seconds(**replacements: str) -> dict[str, float]:
        made = plan_recipe(recipe(**replacements))
        return {step.label: step.seconds for step in steps(made, speed=lambda shape, device: Speed(1e6))}

    one = seconds()
    assert list(one) == ["score ", "write cut", "perplexity", "page"]
    more = seconds(**{"tokens: 64": "tokens: 128", "samples: 4": "samples: 2"})
    assert more["perplexity"] == 2 * one["perplexity"]
    assert more["score "] == one["score "] / 2
    assert one["write cut"] == more["write cut"]


def test_the_operations_are_those_that_torch_counts(llama: Path, recipe: Callable[..., Path]) -> None:
    """Of a forward pass over the tokens of all models; attention beside its projections is small, and left out."""
    from torch.utils.flop_counter import FlopCounterMode

    model = transformers.AutoModelForCausalLM.from_pretrained(llama)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, 64, dtype=torch.long))
    made = plan_recipe(recipe())
    told = next(step for step in steps(made, speed=lambda shape, device: Speed(2.0)) if step.label == "perplexity")
    models, languages, reached = 3, 2, told.seconds
    counts = counter.get_flop_counts()["Global"]
    # Older releases count attention as the products of its batches.
    attention = ("attention", "bmm")
    products = sum(n for operation, n in counts.items() if not any(word in str(operation) for word in attention))
    from surgeon.plan import duration

    expected = products * models * languages / (2.0 * duration._REACHED)
    assert 0.75 * expected < reached < 1.05 * expected


def test_of_experts_only_those_chosen_count(make_model: Callable[..., Path]) -> None:
    model = make_model("mixtral", num_experts_per_tok=2)  # of 4
    checkpoint = Checkpoint.open(model)
    experts = sum(info.numel for name, info in checkpoint.tensors.items() if ".experts." in name)
    layers = sum(info.numel for name, info in checkpoint.tensors.items() if ".layers." in name and len(info.shape) > 1)
    assert experts > layers / 2
    assert active_entries(checkpoint) == layers - experts // 2


def test_a_text_that_is_short_is_not_scored_for_longer_than_it_is(recipe: Callable[..., Path]) -> None:
    long = plan_recipe(recipe(**{"samples: 4": "samples: 4000000"}))
    told = {step.label: step.seconds for step in steps(long, speed=lambda shape, device: Speed(1e6))}
    size = sum(Path(str(where)).stat().st_size for where in map(str, long.corpus.locations.values()))
    tokens = size / 2  # of the scoring halves; a token is a byte at least
    weights = active_entries(long.checkpoint) + 32 * 258
    assert told["score "] <= 8 * tokens * weights / 1e6 / 0.3


def test_however_fast_a_device_is_every_layer_takes_time_for_every_new_token(recipe: Callable[..., Path]) -> None:
    made = plan_recipe(recipe(), overrides=["verify.prompts=[a, b]", "verify.new_tokens=50"])
    told = {step.label: step.seconds for step in steps(made, speed=lambda shape, device: Speed(1e18))}
    models, layers = 3, shape_of(made.checkpoint).layers
    assert told["continuations"] >= models * 2 * 50 * layers * 5e-4


def test_the_speed_is_tried_out(llama: Path) -> None:
    assert 1e7 < tried_speed(shape_of(Checkpoint.open(llama)), "cpu").operations < 1e13


def test_copies_take_time_where_they_take_longer_than_the_arithmetic(
    recipe: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(budgets.DEVICE, "1K")
    made = plan_recipe(recipe(), device="cuda:99")
    needs = device_needs(made, "cuda:99")
    slow = {step.label: step.seconds for step in steps(made, "cuda:99", lambda shape, device: Speed(1e9, 1e3))}
    computing = sum(seconds for label, seconds in slow.items() if label in ("score ", "perplexity"))
    assert slow["copies"] == pytest.approx((needs.up + needs.down) / 1e3 - computing)
    assert "copies" not in {step.label for step in steps(made, "cuda:99", lambda shape, device: Speed(1e6, 1e12))}
