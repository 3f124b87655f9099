"""Step 2 of `builtin:tiny30`: train the model on the token files of step 1.

    python train.py --work WORK --name NAME [options]

Writes `WORK/NAME/` (checkpoints that `transformers` loads, and `log.txt`). The defaults are those of the
shipped weights.
"""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from batches import CORPUS, DECLARATION, Sampler, TokenFiles, first_windows
from loss import sliced_cross_entropy
from optimizer import Muon
from threads import ThreadChooser
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase


def parse_arguments() -> argparse.Namespace:
    """Declare and read the command line."""
    parser = argparse.ArgumentParser(description="Train the builtin model.")
    add = parser.add_argument
    add("--work", type=Path, required=True, help="working folder of prepare.py")
    add("--name", default="final", help="folder inside WORK for checkpoints and log")
    add("--hidden", type=int, default=200)
    add("--layers", type=int, default=6)
    add("--heads", type=int, default=4)
    add("--key-value-heads", type=int, default=2)
    add("--feed-forward", type=int, default=400)
    add("--length", type=int, default=256, help="tokens per sequence")
    add("--batch", type=int, default=16, help="sequences per step")
    add("--steps", type=int, default=1100)
    add("--optimizer", choices=("adam", "muon"), default="muon", help="for the matrices of the decoder layers")
    add("--learning-rate", type=float, default=3e-3, help="embeddings and norms, and matrices under adam")
    add("--muon-rate", type=float, default=3e-3, help="matrices under muon")
    add("--norm-rate", type=float, default=4.0, help="learning rate of the norms, relative to --learning-rate")
    add("--weight-decay", type=float, default=0.05, help="of the matrices and embeddings")
    add("--sparsity", type=float, default=2e-4, help="soft threshold of the matrices, times the rate factor")
    add("--warm-up", type=int, default=50, help="steps in which the learning rate rises")
    add("--decay", type=int, default=550, help="last steps, in which the learning rate falls to zero")
    add("--balance", type=float, default=0.3, help="exponent of corpus size in a language's share")
    add("--declaration-start", type=float, default=0.04, help="share of declaration windows")
    add("--declaration-end", type=float, default=0.12, help="the same at the last step; rises during the decay")
    add("--validate-every", type=int, default=100)
    add("--seed", type=int, default=30)
    add("--resume", action="store_true", help="go on from the last checkpoint (before its decay, --steps may change)")
    add("--threads", type=int, default=2, help="at most; fewer while others use the machine")
    return parser.parse_args()


def build_model(arguments: argparse.Namespace, vocabulary: int, boundary: int) -> LlamaForCausalLM:
    """Create the model with random weights."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=arguments.hidden,
            num_hidden_layers=arguments.layers,
            num_attention_heads=arguments.heads,
            num_key_value_heads=arguments.key_value_heads,
            intermediate_size=arguments.feed_forward,
            max_position_embeddings=1024,
            rms_norm_eps=1e-5,
            tie_word_embeddings=True,
            bos_token_id=boundary,
            eos_token_id=boundary,
            pad_token_id=boundary,
            initializer_range=0.02,
        )
    )


def decoder_matrices(model: LlamaForCausalLM) -> list[torch.nn.Parameter]:
    """Return the matrices of the decoder layers."""
    return [parameter for name, parameter in model.named_parameters() if "layers." in name and parameter.ndim == 2]


def build_optimizers(model: LlamaForCausalLM, arguments: argparse.Namespace) -> list[torch.optim.Optimizer]:
    """Give every parameter its optimizer; `base_rate` in each group is what the schedule multiplies."""
    matrices = decoder_matrices(model)
    norms = [parameter for parameter in model.parameters() if parameter.ndim == 1]
    embeddings = [model.get_input_embeddings().weight]
    rate, decay = arguments.learning_rate, arguments.weight_decay
    groups = [
        {"params": embeddings, "lr": rate, "weight_decay": decay},
        {"params": norms, "lr": rate * arguments.norm_rate, "weight_decay": 0.0},
    ]
    optimizers: list[torch.optim.Optimizer] = []
    if arguments.optimizer == "muon":
        optimizers.append(Muon(matrices, arguments.muon_rate, weight_decay=decay))
    else:
        groups.append({"params": matrices, "lr": rate, "weight_decay": decay})
    optimizers.append(torch.optim.AdamW(groups, betas=(0.9, 0.98), fused=True))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["base_rate"] = group["lr"]
    return optimizers


class Phase(NamedTuple):
    """What changes with the step number."""

    rate_factor: float
    declaration_share: float
    threshold: float


def schedule(step: int, arguments: argparse.Namespace) -> Phase:
    """Let the rates rise, stay and fall to zero; while they fall, the declaration gains weight."""
    remaining = min(1.0, (arguments.steps - step) / arguments.decay)
    factor = min(remaining, (step + 1) / arguments.warm_up)
    share = arguments.declaration_end + remaining * (arguments.declaration_start - arguments.declaration_end)
    return Phase(factor, share, factor * arguments.sparsity)


@torch.no_grad()
def shrink(matrices: list[torch.nn.Parameter], threshold: float) -> None:
    """Soft-threshold the matrices: move every entry towards zero by `threshold`, and stop there."""
    for matrix in matrices:
        matrix.copy_(torch.nn.functional.softshrink(matrix, threshold))


@torch.no_grad()
def validate(model: LlamaForCausalLM, windows: dict[str, torch.Tensor]) -> float:
    """Return the geometric mean over the languages of the perplexity of their validation windows."""
    losses = []
    for window in windows.values():
        hidden = model.model(input_ids=window[None, :-1], use_cache=False).last_hidden_state
        losses.append(sliced_cross_entropy(hidden, model.lm_head.weight, window[1:]).item())
    return math.exp(sum(losses) / len(losses))


@dataclass
class Training:
    """Everything that a training run changes as it goes."""

    model: LlamaForCausalLM
    tokenizer: PreTrainedTokenizerBase
    optimizers: list[torch.optim.Optimizer]
    sampler: Sampler
    step: int = 0
    running_loss: float = 0.0

    def save(self, folder: Path) -> None:
        """Write a checkpoint that `transformers` loads, and beside it the state to resume from."""
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        state = {
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "random": self.sampler.random.bit_generator.state,
            "step": self.step,
            "running_loss": self.running_loss,
        }
        torch.save(state, folder / "state.new")
        (folder / "state.new").replace(folder / "state.pt")

    def load(self, folder: Path) -> None:
        """Take up the state that `save` wrote."""
        state = torch.load(folder / "state.pt", weights_only=True)
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.sampler.random.bit_generator.state = state["random"]
        self.step, self.running_loss = state["step"], state["running_loss"]


def begin(arguments: argparse.Namespace, folder: Path) -> Training:
    """Build model, optimizers and sampler, fresh or as the last checkpoint left them."""
    torch.manual_seed(arguments.seed)
    tokenizer = AutoTokenizer.from_pretrained(arguments.work / "tokenizer")
    boundary = tokenizer.bos_token_id
    files = TokenFiles(arguments.work / "tokens.safetensors", "train")
    sampler = Sampler(files, arguments.length, boundary, arguments.balance, arguments.seed)
    model = build_model(arguments, len(tokenizer), boundary)
    training = Training(model, tokenizer, build_optimizers(model, arguments), sampler)
    if arguments.resume:
        training.load(folder)
    return training


def train(arguments: argparse.Namespace) -> None:
    """Run the whole training, with validation and checkpoints on the way."""
    folder: Path = arguments.work / arguments.name
    folder.mkdir(parents=True, exist_ok=True)
    training = begin(arguments, folder)
    held_out = TokenFiles(arguments.work / "tokens.safetensors", "validation")
    validation = {source: first_windows(held_out, source, arguments.length) for source in (CORPUS, DECLARATION)}
    threads = ThreadChooser(arguments.threads)
    with (folder / "log.txt").open("a" if arguments.resume else "w", encoding="utf-8", buffering=1) as log:
        print(vars(arguments), f"{training.model.num_parameters()} parameters", file=log)
        started, first_step = time.monotonic(), training.step
        while training.step < arguments.steps:
            threads.before()
            loss = take_step(training, arguments)
            threads.after()
            training.running_loss = 0.98 * training.running_loss + 0.02 * loss if training.step else loss
            training.step += 1
            if training.step % arguments.validate_every == 0 or training.step == arguments.steps:
                seconds = time.monotonic() - started
                speed = (training.step - first_step) * arguments.batch * arguments.length / seconds
                report = [f"{source} {validate(training.model, windows):.2f}" for source, windows in validation.items()]
                report = [f"step {training.step} loss {training.running_loss:.3f}", *report]
                print(*report, f"{speed:.0f} tokens/s {seconds:.0f} s", file=log)
                training.save(folder)


def take_step(training: Training, arguments: argparse.Namespace) -> float:
    """Take one optimizer step and return its loss."""
    model = training.model
    phase = schedule(training.step, arguments)
    batch = training.sampler.batch(arguments.batch, phase.declaration_share)
    hidden = model.model(input_ids=batch[:, :-1], use_cache=False).last_hidden_state
    loss = sliced_cross_entropy(hidden, model.lm_head.weight, batch[:, 1:])
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in training.optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["base_rate"] * phase.rate_factor
        optimizer.step()
        optimizer.zero_grad()
    shrink(decoder_matrices(model), phase.threshold)
    return loss.item()


if __name__ == "__main__":
    train(parse_arguments())
