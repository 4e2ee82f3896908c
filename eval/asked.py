"""Which answers were given to another question than the manifest asks now."""

from collections.abc import Mapping, Sequence

from ..pipeline.manifest import IMAGE_PLACEHOLDER, Record


def changed_questions(prompts: Mapping[str, str], records: Sequence[Record]) -> list[str]:
    """Return the ids of records whose question is surely not the one that was answered.

    A prompt holds the question inside a chat template, but files made elsewhere may hold anything.
    So a prompt without its record's question tells only where most prompts of the file have
    theirs; blanks, line ends, upper case and where images stand do not matter.

    Args:
        prompts: what the student was asked, by id of the record; blank where that is not known.
        records: the manifest.
    """
    told = [r for r in records if r.conversations and prompts.get(r.id, "").strip()]
    changed = [record.id for record in told if not _holds(prompts[record.id], record)]
    return changed if 2 * len(changed) < len(told) else []


def _holds(prompt: str, record: Record) -> bool:
    inside = _plain(prompt)
    pieces = record.conversations[0].text.split(IMAGE_PLACEHOLDER)
    return all(_plain(piece) in inside for piece in pieces)


def _plain(text: str) -> str:
    return "".join(text.casefold().split())
