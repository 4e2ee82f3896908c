import json
from collections.abc import Callable
from pathlib import Path

import pytest

from medalign.trainer.export.export import Wish, export
from medalign.trainer.export.processor import read_processor


@pytest.mark.parametrize("geometry", ["processor", "pad", "crop", "stretch"])
def test_the_exported_processor_gives_the_pixels_of_the_training_bit_for_bit(
    geometry: str, student: Path, make_run: Callable[..., Path], tmp_path: Path, out: Path
) -> None:
    if geometry == "pad":  # the student's own processor pads; now it crops
        path = student / "processor_config.json"
        path.write_text(path.read_text().replace('"do_pad": true', '"do_pad": false'))
    run = make_run(tmp_path / "run", student, student={"geometry": geometry})
    done = export(run, out, Wish(images_checked=4), print)
    assert [one.pixels for one in done.checked] == [0.0] * 4
    settings = json.loads((out / "processor_config.json").read_text())["image_processor"]
    assert bool(settings.get("do_pad")) == (geometry in ("processor", "pad"))


def test_a_student_without_a_padding_token_gets_one_and_sampling_settings_are_mended(
    run: Path, student: Path, out: Path
) -> None:
    tokenizer = json.loads((student / "tokenizer_config.json").read_text())
    del tokenizer["pad_token"]
    (student / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    path = student / "generation_config.json"
    path.write_text(json.dumps({"eos_token_id": [2, 7], "temperature": 0.9, "top_p": 0.6}))
    export(run, out, Wish(images_checked=1), print)
    made = json.loads((out / "generation_config.json").read_text())
    assert made == {"eos_token_id": [2, 7], "bos_token_id": 1, "pad_token_id": 2}
    tokenizer = read_processor(out).tokenizer
    assert (tokenizer.padding_side, tokenizer.pad_token) == ("left", "</s>")
