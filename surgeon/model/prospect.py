"""What a run of a model will meet, told before it: whether it can be built, and whether layer by layer or as a whole.

Both are found out by the very functions that a run goes by, on the model that transformers builds hollow, and kept by
content: a checkpoint is looked at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from surgeon.anatomy.anatomy import key_of
from surgeon.checkpoint.checkpoint import Checkpoint
from surgeon.checkpoint.fingerprint import Fingerprint, library_versions, tokenizer_hashes
from surgeon.checkpoint.store import path_of, recall, remember
from surgeon.errors import CheckpointError, InputError, reason
from surgeon.memory import memory_error, require_room_for_torch

_VERSION = 1  # raise it when the same model would be run in another way


@dataclass(frozen=True)
class Prospect:
    """`refused` says why the model cannot be run, if so; `whole` that its layers are no plain stack.

    `ungraded` says why it has no gradients.
    """

    refused: str | None = None
    whole: bool = False
    ungraded: str | None = None


def prospect_of(checkpoint: Checkpoint) -> Prospect:
    """Return what a run of the model will meet; the first time, transformers builds it hollow.

    A refusal is not kept, since its reason may go: a package that is missing, a file of the tokenizer.
    """
    known = known_prospect(checkpoint)
    if known is not None:
        return known
    prospect = _look(checkpoint)
    if prospect.refused is None and prospect.ungraded is None:
        keep_prospect(checkpoint, prospect.whole)
    return prospect


def keep_prospect(checkpoint: Checkpoint, whole: bool) -> None:
    """Keep how a model is run, for the next plan: also by a run, which compares the layers with the whole model."""
    remember(_path(checkpoint), {"whole": whole})


def known_prospect(checkpoint: Checkpoint) -> Prospect | None:
    """Return it if the checkpoint was looked at before."""
    data = recall(_path(checkpoint))
    return None if data is None else Prospect(whole=data.get("whole") is True)


def _look(checkpoint: Checkpoint) -> Prospect:
    require_room_for_torch()
    from surgeon.model.layer_stack import plain_layers, without_gradients
    from surgeon.model.model import load_model
    from surgeon.model.tokenizer import check_vocabulary

    try:
        loaded = load_model(checkpoint, "float32")
        check_vocabulary(loaded.model, loaded.tokenizer)
        return Prospect(whole=not plain_layers(loaded.model)[0], ungraded=without_gradients(loaded.model))
    except (CheckpointError, InputError) as error:
        if memory_error(error) is not None:
            raise
        return Prospect(str(error))
    except NotImplementedError as error:  # of a part that every language model has, such as its embedding
        return Prospect(f"{checkpoint.folder}: transformers does not run it as a language model: {reason(error)}")


def _path(checkpoint: Checkpoint) -> Path:
    fingerprint = Fingerprint(
        version=_VERSION,
        model="",  # no weight has a say in it
        tokenizer=tokenizer_hashes(checkpoint.folder),
        settings={"anatomy": key_of(checkpoint)},  # the config and the headers, hashed once a plan
        libraries=library_versions(),
    )
    return path_of("prospects", fingerprint.key(), ".json")
