"""`--model medalign` of lmms-eval: a run, an adapter or a student, and a decoder."""

import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, Final, NoReturn

import torch
from lmms_eval.api.model import lmms

from ..decoders import Spec, make_spec
from ..source import find_source
from .answerer import Answerer, Question
from .tasks import HarnessError

_OF_THE_HARNESS: Final = ("max_batch_size",)  # given to every model, of no use here


class MedAlign(lmms):  # type: ignore[misc]
    """Answers by generation; refuses to compare probabilities of fixed texts.

    Args:
        source: run folder, adapter folder or a student's folder.
        student: where the run's student is, if it moved.
        decoder: name of one of the ten.
        preset: whose settings.
        seed: of decoders that draw.
        batch_size: questions at a time.
        device: as torch names it; None takes the GPU if there is one.
        settings: of the decoder, by name; `max_new_tokens` overrides the task's.

    Raises:
        HarnessError: several processes were started.
        ValueError: of the part that is wrong: folder, adapter, decoder, settings.
    """

    is_simple = True

    def __init__(
        self,
        source: str,
        student: str | None = None,
        decoder: str = "greedy",
        preset: str | None = None,
        seed: int = 0,
        batch_size: int | str = 1,
        device: str | None = None,
        **settings: Any,
    ) -> None:
        super().__init__()
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise HarnessError(
                "medalign answers in one process here; start lmms-eval without a launcher, or "
                "share the work with `medalign eval generate --part I/N`"
            )
        self._decoder, self._preset, self._seed = decoder, preset, int(seed)
        self._settings = {
            name: str(value) for name, value in settings.items() if name not in _OF_THE_HARNESS
        }
        self._spec({})  # refuses a wrong setting before anything is loaded
        self._batch_size = int(batch_size)
        model = find_source(Path(source), None if student is None else Path(student))
        name = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self._answerer = Answerer.load(model, torch.device(name))

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Answer every request; the decoder decides sampling and beams, not the task."""
        texts: list[str] = []
        # Requests of one task are neighbours and have equal limits.
        for limits, alike in groupby(requests, key=lambda request: _limits(request.args[1])):
            length, stops = limits
            spec = self._spec({} if length is None else {"max_new_tokens": length})
            for batch in _batches([self._question(request) for request in alike], self._batch_size):
                answers = self._answerer.answer(batch, spec, self._seed)
                texts += [_cut(answer.text, stops) for answer in answers]
        return texts

    def loglikelihood(self, requests: Sequence[Any]) -> NoReturn:  # noqa: ARG002
        """Refuse."""
        raise HarnessError(
            "medalign answers by generation; tasks that compare probabilities of fixed texts "
            "(output_type loglikelihood or multiple_choice) are not offered, since a decoder "
            "changes what is generated and defines no probability of a text"
        )

    def generate_until_multi_round(self, requests: Sequence[Any]) -> NoReturn:  # noqa: ARG002
        """Refuse."""
        raise HarnessError("medalign answers one question at a time, not rounds of them")

    def _spec(self, task: Mapping[str, int]) -> Spec:
        """Return the decoder's settings; the task's length yields to a preset and to settings."""
        task = {} if self._preset is not None else task
        return make_spec(self._decoder, self._preset, {**task, **self._settings})

    def _question(self, request: Any) -> Question:
        text, _, visual_of, number, task, split = request.args
        doc = self.task_dict[task][split][number]
        images = visual_of(doc) or []
        name = doc.get("id", f"{task}/{number}") if isinstance(doc, Mapping) else str(number)
        return Question(str(name), text, tuple(images))


def _limits(options: Mapping[str, Any]) -> tuple[int | None, tuple[str, ...]]:
    """Return a task's longest answer and its stop texts."""
    stops = options.get("until") or ()
    length = options.get("max_new_tokens")
    return length, (stops,) if isinstance(stops, str) else tuple(stops)


def _batches(questions: Sequence[Question], size: int) -> Iterator[Sequence[Question]]:
    return (questions[k : k + size] for k in range(0, len(questions), size))


def _cut(text: str, stops: Sequence[str]) -> str:
    """Return the text before the first stop text."""
    for stop in stops:
        text = text.partition(stop)[0] if stop else text
    return text.strip()
