"""What every rank of a test needs, imported and done once, before it is forked."""

from __future__ import annotations

import rich.console
import rich.progress
import torch.distributed
import transformers
import transformers.conversion_mapping
import transformers.models.llama.modeling_llama
import transformers.models.mixtral.modeling_mixtral
from forking import warm_up

import surgeon.api
import surgeon.measure.verification
import surgeon.model.continuations
import surgeon.model.model
import surgeon.report.figures
import surgeon.scores.score_pass

warm_up()

__all__ = ["rich", "surgeon", "torch", "transformers"]
