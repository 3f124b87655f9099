"""What every rank of a test needs, imported once, before it is forked."""

from __future__ import annotations

import rich.console
import rich.progress
import torch.distributed
import transformers
import transformers.conversion_mapping
import transformers.models.llama.modeling_llama
import transformers.models.mixtral.modeling_mixtral

import surgeon.api
import surgeon.measure.verification
import surgeon.model.continuations
import surgeon.model.model
import surgeon.report.figures
import surgeon.scores.score_pass
from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.model.model import load_model

# What transformers imports when it is first asked to build a model.
load_model(Checkpoint.open("builtin:tiny30"), "float32")

__all__ = ["rich", "surgeon", "torch", "transformers"]
