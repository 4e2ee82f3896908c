import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from medalign.pipeline.experts import load_expert
from medalign.pipeline.weights import ExpertError, weights_sha256


def test_the_same_weights_in_another_file_format_have_the_same_identity(
    small_folder: Path, small: nn.Module, tmp_path: Path
) -> None:
    state = {f"module.visual.{name}": tensor for name, tensor in small.state_dict().items()}
    save_file(state, tmp_path / "x.safetensors")
    one = load_expert(str(small_folder))
    other = load_expert(str(small_folder), tmp_path / "x.safetensors")
    assert one.card == other.card
    changed = dict(small.state_dict())
    changed["proj"] = changed["proj"].clone()
    changed["proj"][0, 0] += 1e-6
    assert weights_sha256(changed) != one.card.weights_sha256 == weights_sha256(small.state_dict())


def test_half_precision_weights_load_and_have_their_own_identity(
    small_folder: Path, small: nn.Module, tmp_path: Path
) -> None:
    state = {f"visual.{name}": tensor.half() for name, tensor in small.state_dict().items()}
    torch.save(state, tmp_path / "half.pt")
    half = load_expert(str(small_folder), tmp_path / "half.pt")
    assert half.dtype == torch.float32
    assert half.card.weights_sha256 != load_expert(str(small_folder)).card.weights_sha256


def damage(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = folder / "open_clip_pytorch_model.bin"
    state = torch.load(path, weights_only=True)
    replaced = change(state)
    torch.save(state if replaced is None else replaced, path)


def without_text(state: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in state.items() if not key.startswith("text.")}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda state: {k: v for k, v in state.items() if k != "visual.proj"},
            r"missing keys: visual\.proj",
        ),
        (
            lambda state: state.update({"visual.extra": torch.zeros(1)}),
            r"unexpected keys: visual\.extra",
        ),
        (
            lambda state: state.update({"visual.positional_embedding": torch.zeros(50, 48)}),
            r"visual\.positional_embedding is \(50, 48\), this expert takes \(17, 48\)",
        ),
        (lambda _: {"text.weight": torch.zeros(1)}, r"no key starts with visual\."),
        (lambda state: {**state, "visual.proj": 3.5}, r"visual\.proj is no tensor but float"),
        (lambda _: [torch.zeros(1)], "expected a state dict, got list"),
    ],
)
def test_weights_that_do_not_fit_are_named(
    small_folder: Path, change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    damage(small_folder, change)
    with pytest.raises(ExpertError, match=message):
        load_expert(str(small_folder))


def test_text_keys_are_neither_needed_nor_read(small_folder: Path) -> None:
    card = load_expert(str(small_folder)).card
    damage(small_folder, without_text)
    assert load_expert(str(small_folder)).card == card


class Evil:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return print, ("code ran while weights were read",)


def test_a_checkpoint_that_must_run_code_is_refused(
    small_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"state_dict": {"visual.proj": Evil()}}, small_folder / "evil.pt")
    with pytest.raises(ExpertError, match="must run code to be read, or is damaged, is refused"):
        load_expert(str(small_folder), small_folder / "evil.pt")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("name", ["cut.pt", "cut.safetensors"])
def test_a_damaged_checkpoint_is_named(small_folder: Path, name: str) -> None:
    whole = (small_folder / "open_clip_pytorch_model.bin").read_bytes()
    (small_folder / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ExpertError, match=name):
        load_expert(str(small_folder), small_folder / name)


def test_a_scripted_model_is_refused(small_folder: Path) -> None:
    path = small_folder / "script.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("script/constants.pkl", b"")
        archive.writestr("script/data.pkl", b"")
        archive.writestr("script/version", b"3")
    with pytest.raises(ExpertError, match=r"script\.pt: not a torch file of plain tensors"):
        load_expert(str(small_folder), path)
