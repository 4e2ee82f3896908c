"""The ids of records: the set's own, or hashes of what a sample says, each used once."""

from .record import content_id
from .sample import Sample
from .tally import Listed


class Ids:
    """Gives every record of a run an id that no other has.

    Attributes:
        repeated: ids of the set that it uses more than once, as they were made unique.
    """

    def __init__(self, name: str) -> None:
        """Take the name of the set, with which every id begins."""
        self._name = name
        self._used = dict[str, int]()
        self.repeated = Listed()

    def __contains__(self, id_: object) -> bool:
        return id_ in self._used

    def of(self, sample: Sample) -> str:
        """Return an id that no record has yet: the second of one id ends in _2, and so on."""
        wanted = f"{self._name}_{content_id(sample) if sample.id is None else sample.id}"
        self._used[wanted] = count = self._used.get(wanted, 0) + 1
        if count == 1:
            return wanted
        unique = f"{wanted}_{count}"
        while unique in self._used:
            count += 1
            unique = f"{wanted}_{count}"
        self._used[unique] = 1
        if sample.id is not None:
            self.repeated.add(unique)
        return unique
