"""Every tensor once, any interruption survived with the same bytes, nothing half left."""

import errno
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from medalign.trainer.convert import convert as shards
from medalign.trainer.convert import safetensors_writer as shard
from medalign.trainer.convert.checkpoint_weights import Weights
from medalign.trainer.convert.convert import Converted
from medalign.trainer.convert.errors import ConvertError
from medalign.trainer.convert.tensor_plan import Piece

Converts = Callable[..., Converted]
Made = Callable[..., Path]


def digests(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {k: v for path in folder.glob("*.safetensors") for k, v in load_file(path).items()}


def stopping(after: int) -> Any:
    """A stage that is interrupted when so many pieces of the weights are written."""

    @contextmanager
    def stage(what: str, _total: int) -> Iterator[Callable[[int], None]]:
        left = after

        def told(_count: int) -> None:
            nonlocal left
            left -= what == "converting"
            if left < 0:
                raise KeyboardInterrupt

        yield told

    return stage


@pytest.mark.parametrize("family", ["llava-med", "huatuo-vision"])
def test_every_tensor_of_the_source_is_used_once_or_listed_with_a_reason(
    family: str, made: Made, converted: Made
) -> None:
    source, made_of = tensors(made(family)), tensors(converted(family))
    report = json.loads((converted(family) / "conversion.json").read_text())
    unused = {one["tensor"]: one["reason"] for one in report["unused"]}
    assert unused == {
        "model.layers.0.self_attn.rotary_emb.inv_freq": "follows from rope_theta",
    }
    assert report["tensors"] == {
        "source": len(source),
        "converted": len(source) - 1,
        "unused": 1,
    }
    rest = [(name, value) for name, value in source.items() if name not in unused]
    remaining = dict(made_of)
    for name, value in rest:
        found = [
            key
            for key, other in remaining.items()
            if torch.equal(other[: len(value)], value) and other.shape[1:] == value.shape[1:]
        ]
        assert len(found) == 1, (name, found)
        del remaining[found[0]]
    assert not remaining
    assert report["parameters"]["total"] == sum(value.numel() for value in made_of.values())


def test_the_report_tells_files_dtypes_and_sources_and_no_path_of_the_machine(
    made: Made, converted: Made
) -> None:
    source, folder = made("llava-med"), converted("llava-med")
    text = (folder / "conversion.json").read_text()
    report = json.loads(text)
    listed = {**report["weights"], **report["others"]}
    found = digests(folder)
    found.pop("conversion.json")
    assert {name: one["sha256"] for name, one in listed.items()} == found
    assert len(report["weights"]) == 7
    assert all(one["bytes"] < 140_000 for one in report["weights"].values())
    assert report["dtypes"] == {"source": {"bfloat16": 99}, "converted": {"bfloat16": 98}}
    for name, one in report["sources"].items():
        assert one["sha256"] == hashlib.sha256((source / name).read_bytes()).hexdigest()
    assert set(report["sources"]) >= {"config.json", "tokenizer.model"}
    for path in folder.iterdir():
        assert str(source.parent).encode() not in path.read_bytes(), path.name
        assert str(folder.parent).encode() not in path.read_bytes(), path.name


def test_the_index_names_every_tensors_file(converted: Made) -> None:
    folder = converted("llava-med")
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    for name, file in index["weight_map"].items():
        with safe_open(folder / file, "pt") as opened:
            assert name in opened.keys()  # noqa: SIM118 - no mapping
    assert set(index["weight_map"]) == set(tensors(folder))
    total = sum(value.nbytes for value in tensors(folder).values())
    assert index["metadata"]["total_size"] == total


def test_interrupted_anywhere_it_goes_on_to_the_same_bytes(
    made: Made, converted: Made, converts: Converts, tmp_path: Path
) -> None:
    source, wanted = made("llava-med"), digests(converted("llava-med"))
    reused = []
    for after in (0, 1, 15, 16, 17, 60, 100):
        out = tmp_path / f"out{after}"
        with pytest.raises(KeyboardInterrupt):
            converts(source, out, "llava-med", stopping(after))
        assert not out.exists()
        done = converts(source, out, "llava-med")
        assert digests(out) == wanted
        reused.append(done.reused)
        assert [path.name for path in tmp_path.glob(f".out{after}*")] == []
    assert reused[0] == 0
    assert sorted(reused) == reused
    assert reused[-1] == 6


def test_interrupted_again_and_again_it_still_ends_with_the_same_bytes(
    made: Made, converted: Made, converts: Converts, tmp_path: Path
) -> None:
    source, wanted = made("llava-med"), digests(converted("llava-med"))
    interrupted = 0
    while not (tmp_path / "out").exists():
        try:
            converts(source, tmp_path / "out", "llava-med", stopping(45))
        except KeyboardInterrupt:
            interrupted += 1
            assert interrupted < 7
    assert interrupted > 1
    assert digests(tmp_path / "out") == wanted


KILLED = """
import os, signal, sys
from contextlib import contextmanager
from pathlib import Path
from medalign.trainer.convert.convert import Wish, convert
from medalign.trainer.convert.checkpoint_families import ORIGINALS

@contextmanager
def stage(what, total):
    left = total // 2
    def told(count):
        global left
        left -= count * (what == "converting")
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
    globals()["left"] = left
    yield told

source, out = map(Path, sys.argv[1:])
convert(source, out, ORIGINALS["llava-med"], Wish(shard_bytes=120_000), stage)
"""


def test_a_killed_conversion_goes_on_with_its_whole_shards(
    made: Made, converted: Made, converts: Converts, tmp_path: Path
) -> None:
    source, out = made("llava-med"), tmp_path / "out"
    killed = subprocess.run([sys.executable, "-c", KILLED, source, out], check=False)
    assert killed.returncode == -signal.SIGKILL
    left = sorted(path.name for path in (tmp_path / ".out.converting" / "folder").iterdir())
    assert left[0].endswith(".partial")
    assert len(left) >= 3
    done = converts(source, out, "llava-med")
    assert done.reused == len(left) - 1
    assert digests(out) == digests(converted("llava-med"))


def test_a_shard_that_lost_bytes_since_is_written_again(
    made: Made, converted: Made, converts: Converts, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        converts(made("llava-med"), out, "llava-med", stopping(60))
    shards = sorted((tmp_path / ".out.converting" / "folder").glob("*.safetensors"))
    assert len(shards) >= 3
    shards[0].write_bytes(shards[0].read_bytes()[:-1])
    flipped = bytearray(shards[1].read_bytes())
    flipped[-1] ^= 1
    shards[1].write_bytes(flipped)
    done = converts(made("llava-med"), out, "llava-med")
    assert done.reused == len(shards) - 2
    assert digests(out) == digests(converted("llava-med"))


def test_a_second_run_says_that_it_is_done_and_writes_nothing(
    source: Path, converts: Converts, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert not converts(source, out, "llava-med").already
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    assert converts(source, out, "llava-med").already
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == before
    assert not (tmp_path / ".out.converting").exists()


def test_a_run_with_other_options_or_another_source_is_refused_over_a_finished_one(
    source: Path, converts: Converts, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    converts(source, out, "llava-med")
    with pytest.raises(ConvertError, match=r"something else \(dtype was 'keep', is 'fp16'\)"):
        converts(source, out, "llava-med", dtype="fp16")
    state = load_file(source / "model-00001-of-00002.safetensors")
    name = next(iter(state))
    save_file({**state, name: state[name] * 2}, source / "model-00001-of-00002.safetensors")
    with pytest.raises(ConvertError, match=r"\(model-00001-of-00002.safetensors changed\)"):
        converts(source, out, "llava-med")
    assert not (tmp_path / ".out.converting").exists()


def test_a_source_that_changed_between_two_runs_is_refused_until_the_old_shards_are_deleted(
    source: Path, converts: Converts, tmp_path: Path
) -> None:
    out, hidden = tmp_path / "out", tmp_path / ".out.converting"
    with pytest.raises(KeyboardInterrupt):
        converts(source, out, "llava-med", stopping(60))
    os.utime(source / "config.json")  # touched, the same bytes
    with pytest.raises(KeyboardInterrupt):
        converts(source, out, "llava-med", stopping(20))
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "rope_theta": 10000.0}))
    with pytest.raises(ConvertError, match=r"\(config.json changed\); delete it to begin anew"):
        converts(source, out, "llava-med")
    assert len(list(hidden.glob("*.done.json"))) >= 3
    shutil.rmtree(hidden)
    assert converts(source, out, "llava-med").reused == 0


def test_a_source_that_changes_while_it_is_read_is_refused(
    source: Path, converts: Converts, tmp_path: Path
) -> None:
    @contextmanager
    def touching(what: str, _total: int) -> Iterator[Callable[[int], None]]:
        if what == "converting":
            os.utime(source / "tokenizer.model", ns=(1, 1))
        yield lambda _count: None

    with pytest.raises(ConvertError, match=r"tokenizer\.model changed while it was converted"):
        converts(source, tmp_path / "out", "llava-med", touching)
    assert not (tmp_path / "out").exists()
    assert converts(source, tmp_path / "out", "llava-med").reused == 7


def test_a_full_disk_leaves_no_half_file_and_the_next_run_goes_on(
    made: Made,
    converted: Made,
    converts: Converts,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out, written = tmp_path / "out", 0
    whole = shard._Sink.write

    def write(sink: Any, data: Any) -> None:
        nonlocal written
        written += len(data)
        if written > 300_000:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        whole(sink, data)

    monkeypatch.setattr(shard._Sink, "write", write)
    with pytest.raises(OSError, match="No space left") as error:
        converts(made("llava-med"), out, "llava-med")
    assert error.value.errno == errno.ENOSPC
    assert "model-0000" in error.value.filename
    folder = tmp_path / ".out.converting" / "folder"
    assert all(path.suffix == ".safetensors" for path in folder.iterdir())
    monkeypatch.undo()
    assert converts(made("llava-med"), out, "llava-med").reused == 2
    assert digests(out) == digests(converted("llava-med"))


def test_too_little_room_is_said_before_anything_is_written(
    made: Made, converts: Converts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "_SPARE", 10**18)
    stages: list[str] = []

    @contextmanager
    def begun(what: str, _total: int) -> Iterator[Callable[[int], None]]:
        stages.append(what)
        yield lambda _count: None

    with pytest.raises(
        ConvertError, match=rf"^{tmp_path} has .* free, what is left to write needs "
    ):
        converts(made("llava-med"), tmp_path / "out", "llava-med", begun)
    assert stages == []
    assert list(tmp_path.iterdir()) == []


def test_too_little_room_for_the_rest_names_the_folder_that_keeps_what_is_written(
    made: Made, converts: Converts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(KeyboardInterrupt):
        converts(made("llava-med"), tmp_path / "out", "llava-med", stopping(60))
    with monkeypatch.context() as patched:
        patched.setattr(shards, "_SPARE", 10**18)
        told = r"choose another --out; .*/\.out\.converting keeps what is written already$"
        with pytest.raises(ConvertError, match=told):
            converts(made("llava-med"), tmp_path / "out", "llava-med")
    assert converts(made("llava-med"), tmp_path / "out", "llava-med").reused > 0


@pytest.mark.parametrize(("wanted", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_weights_are_rounded_once_when_asked(
    wanted: str, dtype: torch.dtype, made: Made, converts: Converts, tmp_path: Path
) -> None:
    source = made("llava-med", dtype=torch.float32)
    done = converts(source, tmp_path / "out", "llava-med", dtype=wanted)
    held = tensors(done.out)
    assert {value.dtype for value in held.values()} == {dtype}
    norm = tensors(source)["model.norm.weight"]
    assert torch.equal(held["language_model.model.norm.weight"], norm.to(dtype))
    config = json.loads((done.out / "config.json").read_text())
    assert config["dtype"] == config["text_config"]["dtype"] == str(dtype).removeprefix("torch.")


@pytest.mark.parametrize(
    ("value", "dtype", "told"),
    [
        (float("nan"), "keep", r"model.norm.weight of .* not finite .*the checkpoint is damaged"),
        (float("inf"), "bf16", "the checkpoint is damaged"),
        (1e6, "fp16", "too large for torch.float16: give --dtype keep or bf16"),
    ],
)
def test_values_that_are_not_finite_are_refused(
    value: float, dtype: str, told: str, source: Path, converts: Converts, tmp_path: Path
) -> None:
    path = source / "model-00001-of-00002.safetensors"
    state = load_file(path)
    assert "model.norm.weight" in state
    state["model.norm.weight"][3] = value
    save_file(state, path)
    begun = len(list(tmp_path.iterdir()))
    with pytest.raises(ConvertError, match=told):
        converts(source, tmp_path / "out", "llava-med", dtype=dtype)
    assert len(list(tmp_path.iterdir())) == begun  # another run could do nothing with the rest


def test_different_dtypes_are_kept_and_counted(
    source: Path, converts: Converts, tmp_path: Path
) -> None:
    path = source / "model-00002-of-00002.safetensors"
    state = load_file(path)
    odd = [name for name in state if "vision_tower" in name]
    save_file({k: v.float() if k in odd else v for k, v in state.items()}, path)
    done = converts(source, tmp_path / "out", "llava-med")
    counts = done.report["dtypes"]["converted"]
    assert counts == {"bfloat16": 98 - len(odd), "float32": len(odd)}
    assert {v.dtype for k, v in tensors(done.out).items() if k.startswith("vision")} >= {
        torch.float32
    }


def test_every_tensor_begins_where_its_dtype_may(tmp_path: Path) -> None:
    """Three numbers of two bytes in front would put one of four bytes at an odd place."""
    state = {"a": torch.ones(3, dtype=torch.bfloat16), "b": torch.full((2,), 2.0)}
    save_file(state, tmp_path / "model.safetensors")
    weights = Weights.open(tmp_path)
    assert weights is not None
    pieces = [
        Piece(
            target=name,
            source=name,
            weights=weights,
            shape=tuple(value.shape),
            rows=0,
            dtype=value.dtype,
        )
        for name, value in state.items()
    ]
    path = tmp_path / "out.safetensors"
    shard.write_shard(path, pieces, lambda _count: None)
    size = int.from_bytes(path.read_bytes()[:8], "little")
    header = json.loads(path.read_bytes()[8 : 8 + size])
    assert (size + 8) % 8 == 0
    assert header["b"]["data_offsets"] == [0, 8]
    assert header["a"]["data_offsets"] == [8, 14]
    written = load_file(path)
    assert all(torch.equal(written[name], value) for name, value in state.items())


def test_a_tied_head_is_left_out_if_it_is_the_embedding(
    originals: ModuleType, converts: Converts, tmp_path: Path
) -> None:
    source = originals.make_llava_med(
        tmp_path / "med", shards=1, config={"tie_word_embeddings": True}
    )
    with pytest.raises(ConvertError, match=r"lm_head.weight differs from the embedding"):
        converts(source, tmp_path / "out", "llava-med")
    state = load_file(source / "model.safetensors")
    state["lm_head.weight"] = state["model.embed_tokens.weight"].clone()
    save_file(state, source / "model.safetensors")
    done = converts(source, tmp_path / "out2", "llava-med")
    assert "language_model.lm_head.weight" not in tensors(done.out)
    reasons = {one["tensor"]: one["reason"] for one in done.report["unused"]}
    assert "tie_word_embeddings" in reasons["lm_head.weight"]


def test_one_file_has_no_index(made: Made, converts: Converts, tmp_path: Path) -> None:
    done = converts(made("llava-med"), tmp_path / "out", "llava-med", shard_bytes=10**9)
    assert [path.name for path in done.out.glob("model*")] == ["model.safetensors"]


def test_licences_of_the_original_come_along(
    source: Path, converts: Converts, tmp_path: Path
) -> None:
    (source / "LICENSE").write_text("research only")
    (source / "README.md").write_text("---\nlicense: apache-2.0\n---\nthe original's card")
    out = converts(source, tmp_path / "out", "llava-med").out
    assert (out / "LICENSE").read_text() == "research only"
    card = (out / "README.md").read_text()
    assert "license: apache-2.0" in card
    assert "the original's card" not in card
