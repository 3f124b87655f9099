"""The recipe: its schema, also as JSON; and a recipe as data. `reading` reads one from YAML."""

from __future__ import annotations

import json
from collections.abc import Collection
from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

import yaml
from pydantic import BeforeValidator, Field, WithJsonSchema, create_model, field_validator, model_validator

from surgeon.kinds import kinds
from surgeon.operations import AnyOperation
from surgeon.recipe.corpus import TextSpec
from surgeon.recipe.fields import Count, Model

if TYPE_CHECKING:
    from surgeon.measure.base import Measurement
    from surgeon.regions.share import Share
    from surgeon.scores.base import Score

_REGIONS = kinds("surgeon.regions")

if TYPE_CHECKING:
    ScoreSpec: TypeAlias = Score
else:
    ScoreSpec = Annotated[reduce(or_, kinds("surgeon.scores").values()), Field(discriminator="kind")]


class RegionBase(Model):
    """A region, by exactly one kind of `surgeon.regions`; `RegionSpec` has a key for each of them."""

    score: ScoreSpec | None = Field(None, description="what to select by; `select: {random: …}` needs none")
    from_: str | None = Field(None, alias="from", description="another region whose score to use")
    include: list[str] = Field(
        [],
        description="roles or tensor name patterns; empty: all of the decoder layers, or of what the region is made of",
    )
    exclude: list[str] = Field([], description="the same, to leave out again")
    layers: Annotated[list[int], Field(min_length=2, max_length=2)] | None = Field(
        None, description="first and last layer, counted from 0; `[0, 3]` are the first four"
    )

    if TYPE_CHECKING:
        select: Share | None

    @property
    def kind(self) -> Any:
        """How the region is made, a `RegionKind`: what stands under the key of its kind."""
        return next(value for key in _REGIONS if (value := getattr(self, key)) is not None)

    @field_validator("layers")
    @classmethod
    def _in_order(cls, layers: list[int] | None) -> list[int] | None:
        if layers is not None and layers[0] > layers[1]:
            raise ValueError(f"the first layer, {layers[0]}, comes after the last, {layers[1]}")
        return layers

    @model_validator(mode="after")
    def _one_kind(self) -> RegionBase:
        others = [key for key in _REGIONS if key != "select"]
        for key in others:
            if getattr(self, key) is not None:
                # What is as if left out may stand there, as it does in a recipe with its defaults filled in.
                defaults = {name: field.default for name, field in type(self).model_fields.items()}
                rest = defaults.keys() - {key, "include", "exclude", "layers"}
                if any(getattr(self, name) != defaults[name] for name in rest):
                    raise ValueError(f"a region given by {key} takes no other keys but include, exclude, layers")
                return self
        if self.select is None:
            raise ValueError(f"needs `select: {{top: 0.01}}` (or bottom, random), or one of {', '.join(others)}")
        if self.score is not None and self.from_ is not None:
            raise ValueError("give either score or from, not both")
        if self.select.random is None and self.score is None and self.from_ is None:
            raise ValueError(f"select {self.select.end} needs a score: add `score:` or `from: REGION`")
        return self


if TYPE_CHECKING:
    RegionSpec: TypeAlias = RegionBase
else:
    RegionSpec = create_model(
        "RegionSpec",
        __base__=RegionBase,
        __module__=__name__,
        __doc__=f"A region, by exactly one of: {', '.join(_REGIONS)}.",
        **{key: (kind | None, Field(None, description=kind.description)) for key, kind in _REGIONS.items()},
    )


class AxisSpec(Model):
    """One axis of a sweep: which keys of the recipe take which values, one after the other."""

    set: str | Annotated[list[str], Field(min_length=1)] = Field(
        description="`regions.NAME.…` or, of the variant itself, `operations.0.…`; several keys take the value together"
    )
    to: Annotated[list[Any], Field(min_length=1)] = Field(description="the values")


if TYPE_CHECKING:
    Held: TypeAlias = str | None
else:  # `reading` gives a name to what is no name
    Held = Annotated[
        str | None,
        WithJsonSchema(
            {
                "anyOf": [
                    {"type": "string"},
                    {
                        "type": "object",
                        "properties": {"tokens": _REGIONS["tokens"].model_json_schema()},
                        "required": ["tokens"],
                        "additionalProperties": False,
                    },
                    {"type": "null"},
                ]
            }
        ),
    ]


class Dequantized(Model):
    """Weights written plainly: each code becomes its value."""

    dtype: Literal["bfloat16", "float16", "float32"] = Field(
        description="that the quantized weights decode to, by config.json"
    )


class VariantSpec(Model):
    """Operations in the order in which they are done, a region to freeze, and whether the result is written."""

    operations: list[AnyOperation] = Field([], max_length=1000, description="what to do to which region, in this order")
    freeze: Held = Field(
        None,
        description="a region whose entries trainers must keep, or `{tokens: [...]}`; also writes `freeze/`",
    )
    train_only: Held = Field(
        None,
        description="the only region that trainers may change, or `{tokens: [...]}`; also writes `freeze/`",
    )
    write: bool | Literal["patch"] | Dequantized = Field(
        True,
        description="a whole checkpoint in the format of the source (`native` says the same), or `patch`: what "
        "changed, as one file (docs/patch-format.md), or nothing; of quantized weights `{dtype: bfloat16}` writes a "
        "plain checkpoint (docs/formats.md); with a sweep, the default is `false`",
    )
    sweep: dict[str, AxisSpec] = Field({}, description="axes by name: one variant per point of their grid instead")

    @model_validator(mode="before")
    @classmethod
    def _points_are_only_measured(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("sweep"):
            return {"write": False, **data}
        return data

    @field_validator("write", mode="before")
    @classmethod
    def _native(cls, value: Any) -> Any:
        return True if value == "native" else value

    @property
    def whole(self) -> bool:
        """True if a whole checkpoint is written."""
        return self.write is True or self.dequantized

    @property
    def dequantized(self) -> bool:
        """True if quantized weights are written plainly."""
        return self.plain_dtype is not None

    @property
    def plain_dtype(self) -> str | None:
        """The dtype in which quantized weights are written plainly, if they are."""
        return self.write.dtype if isinstance(self.write, Dequantized) else None

    @property
    def held(self) -> str | None:
        """The region that a bundle beside the weights speaks of, if there is one."""
        return self.freeze if self.freeze is not None else self.train_only

    @property
    def regions(self) -> list[str]:
        """The regions that it is made with: those of its operations, and the one that a bundle speaks of."""
        named = [label for operation in self.operations for label in operation.regions]
        return list(dict.fromkeys([*named, self.held] if self.held is not None else named))

    @model_validator(mode="after")
    def _does_something(self) -> VariantSpec:
        if not self.operations and self.held is None:
            raise ValueError(
                "does nothing: give it `operations: [{zero: REGION}]`, `freeze: REGION` or `train_only: REGION`"
            )
        if self.freeze is not None and self.train_only is not None:
            raise ValueError("has both `freeze` and `train_only`: one is the complement of the other, so give one")
        if self.held is not None and not self.whole:
            told = "; say `write: true`" if self.sweep else ""
            given = str(self.write).lower()
            key = "freeze" if self.freeze is not None else "train_only"
            raise ValueError(f"{key} writes a bundle beside the weights, so it does not go with `write: {given}`{told}")
        return self


_Ratio: TypeAlias = Annotated[float, Field(gt=0)] | None
_Bound: TypeAlias = Annotated[float, Field(allow_inf_nan=False)] | None


class ExpectSpec(Model):
    """Bounds on a figure of a variant: on the ratio of its perplexity to the base's, or on any other measurement."""

    variant: str = Field(description="name of the variant")
    ratio_at_least: _Ratio = Field(None, description="the ratio of perplexities may not be lower")
    ratio_at_most: _Ratio = Field(None, description="the ratio of perplexities may not be higher")
    measurement: str | None = Field(None, description="of this measurement instead, by its key in `verify`")
    quantity: str | None = Field(None, description="which of its quantities, as in report.json; the first if left out")
    at_least: _Bound = Field(None, description="its value may not be lower; a share is a number from 0 to 1")
    at_most: _Bound = Field(None, description="its value may not be higher")
    change_at_least: _Bound = Field(None, description="its change from the base's value may not be lower")
    change_at_most: _Bound = Field(None, description="its change from the base's value may not be higher")
    language: str | None = Field(None, description="of this language; of the mean over all when left out")
    group: str | None = Field(
        None, description="the one that is meant, if figures are by something other than language, such as a task"
    )
    at: Literal["point", "lower", "upper"] = Field(
        "point", description="what the bound is to hold for: the figure itself, or a bound of its interval"
    )

    @property
    def of_change(self) -> bool:
        """True if the bounds are on the change from the base."""
        return self.change_at_least is not None or self.change_at_most is not None

    @model_validator(mode="after")
    def _some_bound(self) -> ExpectSpec:
        ratio = self.ratio_at_least is not None or self.ratio_at_most is not None
        value = self.at_least is not None or self.at_most is not None
        if self.measurement is None:
            if value or self.of_change or self.quantity is not None or self.group is not None:
                raise ValueError("say which measurement, such as `measurement: divergence`")
            if not ratio:
                raise ValueError("give ratio_at_least or ratio_at_most")
        elif ratio:
            raise ValueError("a ratio is of perplexities and takes no measurement; give at_least or at_most")
        elif value == self.of_change:
            raise ValueError("give at_least or at_most, or change_at_least or change_at_most")
        if self.language is not None and self.group is not None:
            raise ValueError("give either language or group, not both")
        return self


_ALWAYS = "perplexity"  # the measurement that needs no key
_MEASUREMENTS = {name: kind for name, kind in kinds("surgeon.measurements").items() if name != _ALWAYS}


class VerifyBase(Model):
    """What is measured, and how (docs/method.md). Perplexity always is; every other measurement has a key."""

    languages: Literal["all"] | Annotated[list[str], Field(min_length=1)] = Field(
        "all", description="codes of the corpus's languages to measure"
    )
    tokens: Annotated[int, Field(ge=2)] = Field(512, description="per language, at most")
    window: Annotated[int, Field(ge=2)] = Field(256, description="tokens that the model sees at a time")
    stride: Count | None = Field(None, description="new tokens per window; the window itself when left out")
    batch_size: Count = Field(4, description="windows at a time; does not change the figures")
    by: list[Literal["layer", "role"]] = Field(
        [],
        description="measure each cut also in one layer, or one role, at a time; not those of sweeps",
    )
    expect: list[ExpectSpec] = Field([], description="bounds on what comes out; exit code 1 if one is missed")
    prompts: list[Annotated[str, Field(min_length=1)]] = Field([], description="texts for the models to continue")
    continued_by: list[str] | None = Field(
        None, description="the variants that continue them, beside the base; all when left out"
    )
    new_tokens: Count = Field(20, description="per prompt, at most; always the likeliest token")

    @property
    def measurements(self) -> list[Measurement]:
        """What is to be measured, perplexity first."""
        others = [getattr(self, name) for name in _MEASUREMENTS]
        return [kinds("surgeon.measurements")[_ALWAYS](), *(item for item in others if item is not None)]

    @model_validator(mode="after")
    def _stride_fits(self) -> VerifyBase:
        if self.stride is not None and self.stride > self.window:
            raise ValueError(
                f"stride {self.stride} is longer than the window of {self.window}: tokens would be skipped"
            )
        return self


def _switched(kind: type[Any]) -> Any:
    """Return the type of a measurement's key: its own keys, or `true` for their defaults, or `false`."""

    def meant(value: Any) -> Any:
        return {} if value is True else None if value is False else value

    return Annotated[kind | None, BeforeValidator(meant, json_schema_input_type=kind | bool | None)]


if TYPE_CHECKING:
    VerifySpec: TypeAlias = VerifyBase
else:
    VerifySpec = create_model(
        "VerifySpec",
        __base__=VerifyBase,
        __module__=__name__,
        __doc__=VerifyBase.__doc__,
        **{
            name: (
                _switched(kind),
                Field(kind() if kind.on_by_default else None, description=f"{kind.description}; `false`: not measured"),
            )
            for name, kind in _MEASUREMENTS.items()
        },
    )


class PushSpec(Model):
    """Where on the Hub the written variants go (docs/hub.md): each to a repository, or to a branch of one."""

    repo: str = Field(description="`org/name`; `{variant}` in it stands for the variant's name")
    variants: Annotated[list[str], Field(min_length=1)] | None = Field(
        None, description="which, patches too; left out: all that are written as whole checkpoints"
    )
    revision: str | None = Field(None, description='a branch, made if it is missing; `"{variant}"`: one per variant')
    private: bool = Field(False, description="of a repository that is made; one that is public is refused")
    create_pr: bool = Field(False, description="propose the change instead of making it")
    weights: bool = Field(True, description="`false`: only what it takes to make them again")

    @field_validator("revision", mode="before")
    @classmethod
    def _quoted(cls, value: Any) -> Any:
        if isinstance(value, dict):  # what YAML makes of {variant} without quotes
            raise ValueError('put quotes around it: "{variant}"')
        return value

    def place(self, variant: str) -> tuple[str, str | None]:
        """Return the repository and branch of a variant."""
        revision = self.revision.replace("{variant}", variant) if self.revision is not None else None
        return self.repo.replace("{variant}", variant), revision


class Recipe(Model):
    """A whole recipe; paths in it are relative to the folder the command is run in."""

    version: Literal[1] = Field(description="of this format")
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = Field(
        description="letters, digits, `.`, `_`, `-`"
    )
    model: str = Field(description="`builtin:NAME`, a folder, or a Hub id: `org/name`, `hf://org/name@revision`")
    corpus: str | dict[str, str | TextSpec] = Field(
        "builtin:udhr30",
        description="`builtin:NAME`, or per language code a file (`.txt`, `.jsonl`, ...) or a dataset",
    )
    regions: dict[str, RegionSpec] = Field({}, description="sets of entries, by name")
    variants: dict[str, VariantSpec] = Field({}, description="edited models, by name")
    verify: VerifySpec | None = Field(
        None, description="how to measure the base and the variants; left out: not at all"
    )
    push: PushSpec | None = Field(None, description="publish what was written, if the expectations held")
    output: str = Field(description="folder to write to")

    def pushed_variants(self) -> list[str]:
        """Return the variants that `push` publishes."""
        if self.push is None:
            return []
        whole = [name for name, variant in self.variants.items() if variant.whole]
        return whole if self.push.variants is None else list(dict.fromkeys(self.push.variants))

    def score_of(self, region: str) -> ScoreSpec | None:
        """Return the score a region selects by, following `from`."""
        spec = self.regions[region]
        return self.score_of(spec.from_) if spec.from_ is not None else spec.score


def recipe_schema() -> dict[str, Any]:
    """Return the JSON schema of a recipe, for editors."""
    return Recipe.model_json_schema(by_alias=True)


def as_data(recipe: Recipe, without: Collection[str] = ()) -> dict[str, Any]:
    """Return a recipe as JSON data with its defaults filled in, some of its keys left out."""
    return dict(json.loads(recipe.model_dump_json(by_alias=True, exclude_none=True, exclude=set(without))))


def resolved_yaml(recipe: Recipe) -> str:
    """Return a recipe as YAML with its defaults filled in; loading it gives an equal recipe."""
    return yaml.safe_dump(as_data(recipe), sort_keys=False, allow_unicode=True)
