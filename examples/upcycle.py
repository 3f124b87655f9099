"""A mixture of experts of the builtin model, where none is at hand: sparse upcycling (2212.05055), at toy size.

    python examples/upcycle.py out/mixture
    surgeon apply methods/super_experts --set model=out/mixture --set regions.random.select.random=0.0625

Each feed-forward becomes eight copies of itself, of which a router chooses two for each token; each weight of a copy
starts a twentieth of the standard deviation away. Then all is trained on the scoring half of the Declaration, in all
of its languages, with the loss that balances the experts.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import transformers

from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.model.layer_stack import make_stack
from surgeon.model.model import load_model
from surgeon.text.corpora import builtin_corpus
from surgeon.text.windows import tokenize

EXPERTS, CHOSEN, NOISE = 8, 2, 0.05
ROWS, SEQUENCE, LEARNING_RATE = 4, 256, 3e-4


def upcycled(dense: torch.nn.Module, config: transformers.PretrainedConfig) -> torch.nn.Module:
    """Make a Mixtral model that computes nearly what the dense Llama model does."""
    kept = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    kept += ("num_key_value_heads", "head_dim", "rms_norm_eps", "max_position_embeddings", "tie_word_embeddings")
    kept += ("rope_parameters", "bos_token_id", "eos_token_id", "pad_token_id")
    shape = {key: getattr(config, key) for key in kept}
    made = transformers.MixtralForCausalLM(
        transformers.MixtralConfig(
            **shape, num_local_experts=EXPERTS, num_experts_per_tok=CHOSEN, output_router_logits=True
        )
    )
    weights = dense.state_dict()
    missing, unused = made.load_state_dict(weights, strict=False)
    assert all(".mlp." in name for name in [*missing, *unused]), (missing, unused)
    with torch.no_grad():
        for number, layer in enumerate(made.model.layers):
            gate, up, down = (
                weights[f"model.layers.{number}.mlp.{role}_proj.weight"] for role in ("gate", "up", "down")
            )
            for target, source in (
                (layer.mlp.experts.gate_up_proj, torch.cat([gate, up])),
                (layer.mlp.experts.down_proj, down),
            ):
                target.copy_(source + NOISE * source.std() * torch.randn_like(target))
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--steps", type=int, default=60)
    options = parser.parse_args()
    torch.manual_seed(0)
    stack = make_stack(load_model(Checkpoint.open("builtin:tiny30"), "float32"))
    stack.loaded.weights.fill()
    model = upcycled(stack.loaded.model, stack.loaded.model.config).train()
    corpus = builtin_corpus("udhr30")
    ids = torch.tensor(
        [one for code in corpus.languages for one in tokenize(stack.loaded.tokenizer, corpus.text(code).score).ids]
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.01)
    for step in range(options.steps):
        starts = torch.randint(0, len(ids) - SEQUENCE + 1, (ROWS,)).tolist()
        batch = torch.stack([ids[start : start + SEQUENCE] for start in starts])
        optimizer.zero_grad()
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 20 == 0 or step == options.steps - 1:
            print(f"step {step + 1}: loss {loss.item():.3f}", flush=True)
    model.save_pretrained(options.output)
    stack.loaded.tokenizer.save_pretrained(options.output)


if __name__ == "__main__":
    main()
