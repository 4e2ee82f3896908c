"""Questions with room for their answer; the others are skipped as unreadable ones are."""

from dataclasses import dataclass

from torch.utils.data import Dataset

from ..trainer.batch import Sample
from ..trainer.data import Conversations
from .decoders import Spec
from .decoders.room import lacks_room


@dataclass(frozen=True, slots=True)
class FittingQuestions(Dataset[Sample]):
    """Samples by number; picklable, so that each worker process may hold its own.

    Attributes:
        samples: the questions.
        spec: how they will be answered.
    """

    samples: Conversations
    spec: Spec

    def __getitem__(self, index: int) -> Sample:
        sample = self.samples[index]
        if sample.encoded is None:
            return sample
        tokens = len(sample.encoded.input_ids)
        reason = lacks_room(tokens, self.spec, self.samples.student.positions)
        return sample if reason is None else Sample(sample.id, skipped=reason)
