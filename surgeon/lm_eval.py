"""The base and the variants of an output folder as a model of lm-evaluation-harness; no checkpoint is written for it.

    python -m surgeon.lm_eval run --model surgeon --model_args out=OUT,variant=NAME --tasks ...

is the harness's own command, which knows this model then. Releases of the harness that look for models of other
packages (entry points `lm_eval.models`) know it in `lm_eval run`, too; 0.4.13 does not look.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from surgeon.errors import SurgeonError
from surgeon.harness.models import Answer, Question, Questions, asked_model
from surgeon.progress import Progress


def __getattr__(name: str) -> Any:
    """Make the class when it is first asked for, since it is a class of the harness's."""
    if name == "SurgeonLM":
        globals()[name] = _model_class()
        return globals()[name]
    raise AttributeError(name)


def _model_class() -> Any:
    class SurgeonLM(asked_model()):  # type: ignore[misc]
        """A model of `--model_args out=OUT,variant=NAME`; without a variant it is the base."""

        def __init__(
            self, out: str, variant: str = "base", batch_size: Any = 4, device: str | None = None, **others: Any
        ) -> None:
            from surgeon.chat.speakers import open_output
            from surgeon.model.editing import Variant
            from surgeon.plan.check import check_device, chosen_device

            # The harness's command asks for cuda:0 unless told otherwise, also where there is none.
            where = device if device is not None and check_device(device) is None else chosen_device("auto")
            opened = open_output(out, [] if variant == "base" else [variant], device=where)
            self.stack, self.variant = opened.stack, opened.variants.get(variant, Variant("base"))
            self.rows = int(batch_size) if str(batch_size).isdigit() else 4
            self.known: dict[Question, Answer] | None = None
            loaded = opened.stack.loaded
            super().__init__(loaded.tokenizer, loaded.model.config, self._answered, self._said)

        def loglikelihood(self, requests: Any, disable_tqdm: bool = True) -> Any:
            return self._in_one_pass(super().loglikelihood, requests)

        def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = True) -> Any:
            return self._in_one_pass(super().loglikelihood_rolling, requests)

        def _in_one_pass(self, ask: Any, requests: Any) -> Any:
            self.known, self.noted = None, Questions()
            ask(requests)
            questions = list(self.noted.likelihoods)
            self.known = _answers(self.stack, self.variant, questions, self.rows)
            return ask(requests)

        def _answered(self, asked: Sequence[Question]) -> list[Answer]:
            if self.known is None:
                self.noted.likelihoods.update(dict.fromkeys(asked))
                return [(0.0, False)] * len(asked)
            return [self.known[one] for one in asked]

        def _said(self, asked: Any) -> list[str]:
            from surgeon.harness.models import speak

            said = speak(self.stack, [self.variant], list(dict.fromkeys(asked)), Progress())[self.variant.name]
            return [said[one] for one in asked]

    return SurgeonLM


def _answers(stack: Any, variant: Any, questions: Sequence[Question], rows: int) -> dict[Question, Answer]:
    """Return what a variant answers to questions, in one pass through the layers; `rows` texts go together."""
    from surgeon.measure.base import Measurement
    from surgeon.measure.measuring import Look, measure
    from surgeon.measure.tasks import answered, question_pieces, token_values
    from surgeon.model.results import Figures

    class Answers(Measurement):
        """The answers alone, as samples; no recipe asks for it."""

        kind: ClassVar[str] = "answers"
        description: ClassVar[str] = "answers of tasks"

        def quantities(self) -> Any:
            return []

        def values(self, seen: Any) -> Any:
            return token_values(seen)

        def figures(self, pieces: Any, sums: Any) -> Figures:
            return Figures(samples=tuple({"answer": one} for one in answered(questions, sums)))

    look = Look(Answers(), question_pieces(questions, rows), frozenset([variant.name]))
    samples = measure(stack, [variant], [look], Progress())[variant.name]["answers"].samples
    return {question: sample["answer"] for question, sample in zip(questions, samples, strict=True)}


def main() -> None:
    """Run the harness's own command with this model known to it."""
    import sys

    from surgeon.harness.running import version

    try:
        version()
        from lm_eval.__main__ import cli_evaluate
        from lm_eval.api.registry import model_registry

        if "surgeon" not in model_registry:
            model_registry.register("surgeon", target="surgeon.lm_eval:SurgeonLM")
        cli_evaluate()
    except SurgeonError as error:
        print("\n".join(error.said), file=sys.stderr)
        raise SystemExit(error.exit_code) from None


if __name__ == "__main__":
    main()
