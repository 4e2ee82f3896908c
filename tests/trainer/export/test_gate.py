import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import save_file

from medalign.trainer.export import export as job
from medalign.trainer.export import merge, modeling_medalign_llava, read_back
from medalign.trainer.export.export import Wish, export
from medalign.trainer.export.gate import (
    Checked,
    Gap,
    GateError,
    gap,
    judge,
    require_known_transformers,
)
from medalign.trainer.export.modeling_medalign_llava import (
    KNOWN_TRANSFORMERS,
    name_weights_as_llava,
)
from medalign.trainer.export.processor import read_processor

FAST = Wish(images_checked=0)
NONE = torch.tensor([], dtype=torch.long)


def test_the_gap_is_the_divergence_worked_out_by_hand() -> None:
    # p = (1/2, 1/2), q = (3/4, 1/4): KL(p || q) = log(4/3) / 2. The second row is equal.
    reference = torch.zeros(2, 2)
    other = torch.tensor([[math.log(3.0), 0.0], [5.0, 5.0]])
    found = gap(reference, other, torch.tensor([0]))
    assert found.kl == pytest.approx(math.log(4 / 3) / 4)
    assert found.answer_kl == pytest.approx(math.log(4 / 3) / 2)
    assert found.max_abs == 5.0
    assert (found.tokens, found.answer_tokens) == (2, 1)


def test_the_gap_sees_every_row_of_a_long_conversation() -> None:
    reference = torch.zeros(130, 3)
    other = reference.clone()
    other[129, 0] = 1.0
    assert gap(reference, other, NONE).max_abs == 1.0
    other[3, 0] = float("nan")
    assert math.isnan(gap(reference, other, NONE).max_abs)


@pytest.mark.parametrize("mean", ["kl", "answer_kl"])
@pytest.mark.parametrize("model", ["merged", "exported"])
@pytest.mark.parametrize("value", [2e-7, math.nan])
def test_each_mean_of_each_model_is_held_to_the_limit(mean: str, model: str, value: float) -> None:
    fine = Gap(tokens=9, answer_tokens=2, max_abs=0.0, kl=9e-8, answer_kl=9e-8)
    passing = Checked(record=1, images=1, merged=fine, exported=fine, pixels=0.0)
    judge([passing], 1e-7)
    moved: dict[str, Any] = {mean: value}
    changed: dict[str, Any] = {model: replace(fine, **moved)}
    failing = replace(passing, **changed)
    with pytest.raises(GateError, match=r"record 1: .* moved the mean KL by (2e-07|nan), allowed"):
        judge([passing, failing], 1e-7)


def test_an_export_within_the_limit_says_its_numbers_and_keeps_them(
    run: Path, tmp_path: Path
) -> None:
    said: list[str] = []
    done = export(run, tmp_path / "out", Wish(images_checked=3), said.append)
    kept = json.loads((tmp_path / "out" / "export.json").read_text())["gate"]
    assert [one["record"] for one in kept["records"]] == [1, 2, 3]
    assert len([line for line in said if line.startswith("record ")]) == 3
    for one in done.checked:
        assert 0 < one.merged.max_abs < 1e-4
        assert one.merged.answer_tokens > 1
        assert one.exported.max_abs == 0.0
        assert 0 < one.merged.kl < kept["most_mean_kl"] == 1e-7


def test_bfloat16_has_its_own_limit_and_stays_below_it(run: Path, tmp_path: Path) -> None:
    done = export(run, tmp_path / "out", Wish(dtype="bf16"), print)
    assert all(1e-6 < one.merged.kl < 2e-2 for one in done.checked)
    assert all(one.exported.max_abs == 0.0 for one in done.checked)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["dtype"] == config["text_config"]["dtype"] == "bfloat16"


def test_a_merge_that_went_wrong_is_refused_and_leaves_no_folder(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(*args: Any) -> tuple[Any, int | None]:
        llava, layer = merge.merge(*args)
        llava.model.language_model.layers[1].mlp.up_proj.weight.data[3].mul_(1.1)
        return llava, layer

    monkeypatch.setattr(job, "merge", wrong)
    said: list[str] = []
    with pytest.raises(GateError, match=r"merging moved the mean KL by .*, allowed is 1e-07;"):
        export(run, tmp_path / "out", Wish(), said.append)
    assert any(line.startswith("record 4:") for line in said)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "student"]


@pytest.mark.parametrize("lost", ["visual_rotation", "linear_2.bias", "lm_head"])
def test_a_file_that_holds_other_numbers_is_refused_and_leaves_no_folder(
    lost: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(tensors: dict[str, torch.Tensor], *args: Any, **kwargs: Any) -> None:
        changed = {name: t * 0.999 if lost in name else t for name, t in tensors.items()}
        save_file(changed, *args, **kwargs)

    monkeypatch.setattr(merge, "save_file", wrong)
    with pytest.raises(GateError, match=rf"1 of 83 tensors are not what was merged: .*{lost}"):
        export(run, tmp_path / "out", FAST, print)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "student"]


def test_a_rotation_that_is_read_but_not_applied_is_refused(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(modeling_medalign_llava, "_rotate_visual_tokens", lambda *_args: None)
    # A lenient limit on merging is none on writing and reading.
    with pytest.raises(GateError, match=r"the exported folder moved the mean KL .* is 1e-06"):
        export(run, tmp_path / "out", Wish(threshold=1.0), print)


def test_a_processor_of_another_geometry_is_refused(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(folder: Path) -> Any:
        processor = read_processor(folder)
        processor.image_processor.do_pad = False
        return processor

    monkeypatch.setattr(read_back, "read_processor", wrong)
    with pytest.raises(GateError, match="the exported processor moved a pixel by"):
        export(run, tmp_path / "out", Wish(), print)


def test_a_processor_that_makes_another_prompt_is_refused(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(folder: Path) -> Any:
        processor = read_processor(folder)
        processor.num_additional_image_tokens = 0
        return processor

    monkeypatch.setattr(read_back, "read_processor", wrong)
    with pytest.raises(GateError, match="makes other tokens of the prompt"):
        export(run, tmp_path / "out", Wish(), print)


def test_a_threshold_of_the_users_is_the_limit(run: Path, tmp_path: Path) -> None:
    with pytest.raises(GateError, match="allowed is 0;"):
        export(run, tmp_path / "out", Wish(threshold=0.0), print)


def test_this_transformers_has_what_an_export_with_a_rotation_needs() -> None:
    require_known_transformers()


class Changed:
    """A transformers.conversion_mapping whose functions take other arguments, or know no Llava."""

    @staticmethod
    def get_checkpoint_conversion_mapping(model_type: str) -> list[str]:
        return [model_type]

    @staticmethod
    def register_checkpoint_conversion_mapping(model_type: str) -> None:
        raise AssertionError(model_type)


class Unknown(Changed):
    @staticmethod
    def get_checkpoint_conversion_mapping(_model_type: str) -> list[str]:
        return []


@pytest.mark.parametrize(
    ("module", "told"),
    [
        (None, "conversion_mapping"),
        (object(), "no attribute 'get_checkpoint_conversion_mapping'"),
        (Changed, "unexpected keyword argument"),
        (Unknown, "there is no mapping for llava"),
    ],
)
def test_a_transformers_that_names_weights_otherwise_is_one_clear_line(
    module: Any, told: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transformers, "conversion_mapping", module, raising=False)
    monkeypatch.setitem(sys.modules, "transformers.conversion_mapping", module)
    with pytest.raises(GateError) as caught:
        export(run, tmp_path / "out", FAST, print)
    message = str(caught.value)
    assert told in message
    assert "\n" not in message
    assert f"transformers {transformers.__version__} cannot load a model with a rotation" in message
    assert f"versions {KNOWN_TRANSFORMERS} are known to work" in message
    assert not (tmp_path / "out").exists()
    with pytest.raises(ImportError, match="is gone or has changed"):
        name_weights_as_llava("medalign_llava")  # what a user without medalign sees
