import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from medalign.eval.predictions import Answer

VOID = {"meta", "input"}
MakeAnswer = Callable[..., Answer]


@dataclass
class Element:
    """An element of a page; `text` is all text inside it."""

    name: str
    attributes: dict[str, str]
    children: list["Element"] = field(default_factory=list)
    parts: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(self.parts)

    def all(self, name: str = "", **attributes: str) -> Iterator["Element"]:
        for child in self.children:
            wanted = {key.rstrip("_"): value for key, value in attributes.items()}
            fits = all(value in child.attributes.get(k, "").split() for k, value in wanted.items())
            if name in ("", child.name) and fits:
                yield child
            yield from child.all(name, **attributes)


class Tree(HTMLParser):
    """Elements of a page; end tags that do not fit what is open are an error."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Element("", {})
        self.open = [self.root]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs), f"<{tag}> has an attribute twice"
        element = Element(tag, {key: value or "" for key, value in attrs})
        self.open[-1].children.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop().name == tag

    def handle_data(self, data: str) -> None:
        for element in self.open:
            element.parts.append(data)


Parse = Callable[[str], Element]


@pytest.fixture(scope="session")
def parse() -> Parse:
    def read(html: str) -> Element:
        tree = Tree()
        tree.feed(html)
        tree.close()
        assert tree.open == [tree.root]
        return tree.root

    return read


@dataclass(frozen=True)
class Task:
    """Files of one task: what `write_report` takes."""

    predictions: list[Path]
    manifest: Path
    images: Path
    store: Path

    def answers(self, number: int) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.predictions[number].read_text().splitlines()]


HOSTILE = "<script>alert('no')</script>"


@pytest.fixture(scope="session")
def task(
    tmp_path_factory: pytest.TempPathFactory, stores_below: Callable[[Path], Callable[..., Path]]
) -> Task:
    """Six questions about three images, two of which have rows; two decoders."""
    folder = tmp_path_factory.mktemp("report")
    images = folder / "images"
    images.mkdir()
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (20, 40, 3), dtype=np.uint8)).save(images / "wide.png")
    Image.fromarray(rng.integers(0, 60000, (50, 30), dtype=np.uint16)).save(images / "deep.png")
    Image.new("RGB", (8, 8)).save(images / "other.png")
    named = ("wide.png", "deep.png")
    content = [hashlib.sha256((images / name).read_bytes()).hexdigest() for name in named]
    store = stores_below(folder)(2, paths=named, content=content, geometry="pad")
    asked = [
        ("a", "wide.png", "CLOSED", "Is it there?", "No", "No", "Yes, it is"),
        ("b", "wide.png", "OPEN", "Where?", "left lung", "left lung", "left lung."),
        (HOSTILE, "deep.png", "OPEN", f"What {HOSTILE}?", "a & b", HOSTILE, "</article>\"'"),
        ("d", "deep.png", "CLOSED", "Seen?", "Yes", "No", "maybe \ud800 \x07"),
        ("e", "other.png", "CLOSED", "Large?", "Yes", "Yes", ""),
        ("f", "gone.png", "CLOSED", "Missing?", "No", "No", "see http://example.org/x"),
    ]
    rows: list[dict[str, Any]] = []
    texts: tuple[list[tuple[str, str, str]], ...] = ([], [])
    for id_, image, kind, question, reference, *said in asked:
        turns = [
            {"from": "human", "value": f"<image>\n{question}"},
            {"from": "gpt", "value": reference},
        ]
        rows.append({"id": id_, "image": image, "answer_type": kind, "conversations": turns})
        for one, text in zip(texts, said, strict=True):
            one.append((id_, text, reference))
    manifest = folder / "m.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    predictions = []
    for decoder, lines in zip(("greedy", "vcd"), texts, strict=True):
        path = folder / f"{decoder}.jsonl"
        answers = (
            Answer(
                id=id_,
                prompt="",
                text=text,
                answer=reference,
                decoder=decoder,
                seed=0,
                new_tokens=1,
                settings={"max_new_tokens": 7},
            )
            for id_, text, reference in reversed(lines)
        )
        path.write_bytes(b"".join(answer.to_line() for answer in answers))
        predictions.append(path)
    return Task(predictions, manifest, images, store)
