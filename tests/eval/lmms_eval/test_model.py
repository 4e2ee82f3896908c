import importlib
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from medalign.eval.decoders import DecodingError, make_spec
from medalign.eval.generate import generate
from medalign.eval.lmms_eval.answerer import Answerer, Question, rgb_of
from medalign.eval.lmms_eval.tasks import HarnessError, images_of, question_of
from medalign.eval.source import find_source
from medalign.pipeline.pixels import read_image

SEED = 3


@pytest.fixture(scope="module")
def model_class() -> Any:
    """The model on top of lmms-eval's base class, or of as much of it as it needs."""
    torch.set_num_threads(1)
    if find_spec("lmms_eval") is not None:
        return importlib.import_module("medalign.eval.lmms_eval.model").MedAlign

    class Base:
        def __init__(self) -> None:
            self.task_dict: dict[str, Any] = {}

    names = ("lmms_eval", "lmms_eval.api", "lmms_eval.api.model")
    with pytest.MonkeyPatch.context() as patch:
        for name in names:
            patch.setitem(sys.modules, name, ModuleType(name))
        sys.modules[names[-1]].__dict__["lmms"] = Base
        return importlib.import_module("medalign.eval.lmms_eval.model").MedAlign


@pytest.fixture(scope="module")
def expected(
    data: Path, adapter: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], list[str]]:
    """What `eval generate` answers on SLAKE, by decoder."""
    torch.set_num_threads(1)

    def answers(decoder: str) -> list[str]:
        from medalign.eval.predictions import read_answers

        out = tmp_path_factory.mktemp("out") / "p.jsonl"
        folder = data / "slake"
        spec = make_spec(decoder, None, {"max_new_tokens": 6})
        generate(
            find_source(adapter), folder / "test.jsonl", folder / "images", out, spec, seed=SEED
        )
        return [answer.text for answer in read_answers(out)]

    return answers


def requests(rows: Any, **options: Any) -> list[Any]:
    """As lmms-eval asks a model that is not a chat model."""
    wanted = {"max_new_tokens": 6, "until": [], **options}
    return [
        SimpleNamespace(args=(question_of(row), wanted, images_of, k, "medalign_slake", "test"))
        for k, row in enumerate(rows)
    ]


@pytest.mark.parametrize("decoder", ["greedy", "vcd"])
def test_answers_are_those_of_eval_generate(
    model_class: Any,
    adapter: Path,
    docs: Callable[[str], Any],
    expected: Callable[[str], list[str]],
    decoder: str,
) -> None:
    rows = docs("slake")
    model = model_class(str(adapter), decoder=decoder, seed=SEED, batch_size=2)
    model.task_dict = {"medalign_slake": {"test": rows}}
    assert model.generate_until(requests(rows)) == expected(decoder)


def test_stop_texts_and_lengths_of_a_task_are_kept(
    model_class: Any, student: Path, docs: Callable[[str], Any]
) -> None:
    rows = docs("slake")
    model = model_class(str(student), batch_size="3", max_batch_size=None)
    model.task_dict = {"medalign_slake": {"test": rows}}
    whole = model.generate_until(requests(rows, max_new_tokens=8))
    stop = whole[0][3]
    mixed = [
        *requests(rows[:1], max_new_tokens=8, until=stop),
        *requests(rows, max_new_tokens=8)[1:],
    ]
    assert model.generate_until(mixed) == [whole[0].partition(stop)[0].strip(), *whole[1:]]
    short = model.generate_until(requests(rows, max_new_tokens=2))
    assert all(len(a) < len(b) for a, b in zip(short, whole, strict=True))


def test_a_length_in_the_models_arguments_overrides_the_tasks(
    model_class: Any, student: Path, docs: Callable[[str], Any]
) -> None:
    rows = docs("slake")[:1]
    tasks = {"medalign_slake": {"test": rows}}
    short, preset = (
        model_class(str(student), max_new_tokens=2),
        model_class(str(student), preset="medalign-huatuo", max_new_tokens=2),
    )
    short.task_dict = preset.task_dict = tasks
    answers = short.generate_until(requests(rows, max_new_tokens=8))
    assert preset.generate_until(requests(rows, max_new_tokens=8)) == answers
    short._settings = {}
    assert len(short.generate_until(requests(rows, max_new_tokens=8))[0]) > len(answers[0])


def test_probabilities_rounds_and_several_processes_are_refused(
    model_class: Any, student: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_class(str(student))
    with pytest.raises(HarnessError, match="loglikelihood or multiple_choice"):
        model.loglikelihood([])
    with pytest.raises(HarnessError, match="one question at a time"):
        model.generate_until_multi_round([])
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(HarnessError, match=r"--part I/N"):
        model_class(str(student))


def test_a_wrong_setting_is_told_before_anything_is_loaded(model_class: Any) -> None:
    with pytest.raises(DecodingError, match="vcd has no setting 'alhpa'"):
        model_class("nowhere", decoder="vcd", alhpa=2)


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "I;16"])
def test_opened_images_are_seen_as_files_are(mode: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (5, 7, 4), dtype=np.uint8)
    if mode == "I;16":
        image = Image.fromarray(rng.integers(0, 60000, (5, 7), dtype=np.uint16))
    else:
        image = Image.fromarray(pixels).convert("RGB" if mode == "P" else "RGBA").convert(mode)
    image.save(tmp_path / "x.png")
    for alpha in ("black", "white"):
        expected = read_image(tmp_path / "x.png", alpha=alpha).rgb
        assert np.array_equal(rgb_of(image, alpha), expected)


def test_colour_spaces_that_no_png_holds_are_converted() -> None:
    image = Image.new("CMYK", (3, 2), (0, 255, 255, 0))
    assert np.array_equal(rgb_of(image, "black"), np.asarray(image.convert("RGB")))


def test_a_text_with_placeholders_keeps_them_where_they_are(student: Path) -> None:
    answerer = Answerer.load(find_source(student), torch.device("cpu"))
    image = Image.new("RGB", (8, 8))
    spec = make_spec("greedy", None, {"max_new_tokens": 2})
    asked = [
        Question("a", "What is this?", (image,)),
        Question("b", "What <image> is this?", (image,)),
        Question("c", "Hello?", ()),
    ]
    prompts = [answer.prompt for answer in answerer.answer(asked, spec, 0)]
    assert "USER: <image>\nWhat is this? ASSISTANT:" in prompts[0]
    assert "What <image> is this?" in prompts[1]
    assert "<image>" not in prompts[2]
