"""The recipe's scores: what the entries of a region are selected by. `schema` has all the rest."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


def _not_a_bare_one(value: Any) -> Any:
    if type(value) is int and value == 1:
        raise ValueError("1 would be all entries: write 0.01 for one percent, or 1.0 if all are meant")
    return value


Fraction = Annotated[float, Field(gt=0.0, le=1.0), BeforeValidator(_not_a_bare_one)]
Count = Annotated[int, Field(ge=1)]
Measure = Literal["frequency", "mean", "maximum", "spike"]  # of activations


class Model(BaseModel):
    """Base of the schema: immutable, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, populate_by_name=True)


class SampledScore(Model):
    """What the scores that run the model on text have in common (docs/method.md); a score per language."""

    languages: Annotated[list[str], Field(min_length=1)] = Field(
        description="codes of the corpus's languages to score on"
    )
    samples: Count = Field(64, description="sequences per language, at most; fewer if the text runs out")
    sequence_length: Annotated[int, Field(ge=2)] = Field(256, description="in tokens")
    batch_size: Count = Field(4, description="sequences per step; summed over if `reduction` is absolute")
    dtype: Literal["auto", "float32", "native"] = Field(
        "auto", description="arithmetic: float32, or the weights' own dtype; auto is float32 on every device"
    )


class GradParamScore(SampledScore):
    """|weight x gradient|: how much the loss would change without the entry, to first order."""

    kind: Literal["grad_param"] = Field(description="the score: the weight times its gradient")
    reduction: Literal["signed", "absolute"] = Field(
        "signed", description="signed: absolute value of the sum over batches; absolute: sum of the absolute values"
    )


class WandaScore(SampledScore):
    """|weight| x norm of the input it is multiplied with, over the sample; matrices of linear layers only."""

    kind: Literal["wanda"] = Field(description="the score: the weight times the norm of its input")
    power: Literal[1, 2] = Field(1, description="of the norm; 2 with `unit: column, by: l2` is SSU's score")


class ActivationScore(SampledScore):
    """What the neurons of the feed-forward do on the sample; every entry of a neuron has the neuron's score."""

    kind: Literal["activation"] = Field(description="the score: how a neuron is active")
    measure: Measure = Field(
        description="frequency: share of tokens at which the gate is open; mean, maximum: of the size of what the "
        "neuron gives the down matrix; spike: of an entry of the down matrix, the largest input of its column times "
        "the largest output of its row"
    )


class DeltaScore(Model):
    """|weight - another checkpoint's|: what training changed; no model is run and no text read."""

    kind: Literal["delta"] = Field(description="the score: the size of a change")
    other: str = Field(description="the other model: folder, builtin:NAME, or Hub id")
    merged: str | None = Field(
        None, description="a model that `other` was merged into: the change is divided by what the merger lost of it"
    )


class MagnitudeScore(Model):
    """|weight|; no model is run and no text read."""

    kind: Literal["magnitude"] = Field(description="the score: the weight's size")


class RandomScore(Model):
    """A number between 0 and 1 drawn for each entry: what any score must beat."""

    kind: Literal["random"] = Field(description="the score: drawn at random")
    seed: Annotated[int, Field(ge=0)] = Field(0, description="another seed, another draw")


ScoreSpec = GradParamScore | WandaScore | ActivationScore | MagnitudeScore | DeltaScore | RandomScore
