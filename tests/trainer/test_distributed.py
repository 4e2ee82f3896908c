"""Two real ranks on this machine: `torchrun`, gloo, every ZeRO stage.

The toy's parameters are all smaller than the size below which DeepSpeed leaves them whole under
stage 3; only with `stage3_param_persistence_threshold: 0` is anything cut into parts.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from medalign.pipeline.manifest import read_manifest
from medalign.runtime.files import read_lines
from medalign.trainer.data.order import StepOrder
from medalign.trainer.loop import Step
from medalign.trainer.recipe.recipe import Recipe
from medalign.trainer.train import train

# One fixture runs all scenarios on two ranks, beside another worker of pytest.
pytestmark = [pytest.mark.distributed, pytest.mark.timeout(900)]

CHANGED = ("0", "2", "3")
STAGES = (*CHANGED, "1", "3-offload", "2-offload")
POISONED = (*CHANGED, "2-offload")
# Adam makes much of the last bits of a gradient near 0: a fiftieth of one update.
UPDATE = 2e-4
TERMS = ("loss", "lm", "vis", "att", "grad_norm")
EXACT = {"lora__dropout": 0.0, "validation__every": 2}


def torchrun(*words: str, ranks: int = 2) -> list[str]:
    rendezvous = ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    launcher = [sys.executable, "-m", "torch.distributed.run", *rendezvous]
    return [*launcher, "--nproc_per_node", str(ranks), *words]


def environment() -> dict[str, str]:
    # A rank's variables would make the launcher's children ranks of this process.
    ours = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT", "MASTER_ADDR")
    clean = {k: v for k, v in os.environ.items() if k not in ours}
    return {**clean, "OMP_NUM_THREADS": "1"}


def deepspeed_section(stage: str, folder: Path) -> dict[str, Any]:
    number, _, offload = stage.partition("-")
    zero: dict[str, Any] = {"stage": int(number)}
    if number == "3":
        zero["stage3_param_persistence_threshold"] = 0
    if offload:
        zero["offload_optimizer"] = {"device": "cpu"}
    if offload and number == "3":
        zero["offload_param"] = {"device": "cpu"}
    path = folder / f"zero-{stage}.json"
    path.write_text(json.dumps({"zero_optimization": zero, "train_batch_size": "auto"}))
    return {"config": str(path)}


def at(stages: Sequence[str]) -> pytest.MarkDecorator:
    """Parametrise a test over ZeRO stages; those beyond CHANGED are slow."""
    slow = pytest.mark.slow
    params = [pytest.param(s, marks=[] if s in CHANGED else slow) for s in stages]
    return pytest.mark.parametrize("stage", params)


class Runs:
    """Everything that the two ranks measured, and how to repeat a run here on one."""

    def __init__(self, folder: Path, base: dict[str, Any], cache: Path) -> None:
        self.folder, self.base, self.cache = folder, base, cache
        self.found: dict[str, dict[str, Any]] = {}
        self.errors: list[dict[str, str | None]] = []

    def recipe(self, stage: str, batch_size: int, **changes: Any) -> dict[str, Any]:
        sections = json.loads(json.dumps(self.base))
        sections["deepspeed"] = deepspeed_section(stage, self.folder)
        sections["data"]["batch_size"] = batch_size
        for key, value in changes.items():
            section, _, name = key.partition("__")
            sections.setdefault(section, {})[name] = value
        if "validation" in sections:
            sections["validation"]["manifest"] = sections["data"]["manifest"]
        return dict(sections)

    def on_two(self, plans: list[dict[str, Any]]) -> None:
        plan, out = self.folder / "plan.json", self.folder / "found.json"
        plan.write_text(json.dumps([{**p, "cache": str(self.cache)} for p in plans]))
        script = str(Path(__file__).with_name("ranks_scenarios.py"))
        done = subprocess.run(
            torchrun(script, str(plan), str(out)),
            env=environment(), capture_output=True, text=True, timeout=600, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-4000:]
        read = json.loads(out.read_text())
        self.found |= read["runs"]
        self.errors = read["errors"]

    def on_one(self, recipe: dict[str, Any], out: Path) -> list[dict[str, Any]]:
        steps: list[dict[str, Any]] = []

        def report(step: Step, _of: int) -> None:
            steps.append({name: getattr(step, name) for name in Step.__slots__})

        train(Recipe.model_validate(recipe), self.cache, out, say=lambda _: None, report=report)
        return steps


@pytest.fixture(scope="module")
def runs(
    tmp_path_factory: pytest.TempPathFactory,
    datasets_below: Callable[[Path], Callable[..., tuple[Path, Path, Path]]],
    students: Callable[..., Path],
    request: pytest.FixtureRequest,
) -> Runs:
    """Let two ranks do, in one pair of processes, what the chosen tests below look at."""
    items = [item for item in request.session.items if item.path == Path(__file__)]
    parameters = [item.callspec.params for item in items if hasattr(item, "callspec")]
    chosen = sorted({values["stage"] for values in parameters if "stage" in values})
    text = {"conversations": [{"from": "human", "value": q} for q in ("Are lungs paired?",)]}
    text["conversations"].append({"from": "gpt", "value": "yes"})
    manifest, images, cache = datasets_below(tmp_path_factory.mktemp("data"))(
        records=6, extra=[{"id": f"text{k}", **text} for k in range(3)]
    )
    base = {
        "student": {"dtype": "fp32", "path": str(students())},
        "loss": {"layer": 2, "alpha": 1.0, "beta": 0.1},
        "lora": {"rank": 4, "alpha": 8.0, "dropout": 0.1},
        "optim": {"lr": 1e-2, "projector_lr": 1e-3, "rotation_lr": 5e-3, "warmup_ratio": 0.2},
        "data": {
            "batch_size": 1, "accumulation": 2, "workers": 0,
            "manifest": str(manifest), "images": str(images),
        },
        "run": {"steps": 4, "seed": 1, "save_every": 2},
    }  # fmt: skip
    runs = Runs(tmp_path_factory.mktemp("ranks"), base, cache)
    plans: list[dict[str, Any]] = []
    for stage in chosen:
        out = runs.folder / stage
        noisy, exact = runs.recipe(stage, 1), runs.recipe(stage, 1, **EXACT)
        plans += [
            {"name": f"{stage} whole", "recipe": noisy, "out": str(out / "whole")},
            {"name": f"{stage} cut", "recipe": noisy, "out": str(out / "cut"), "stop_after": 3},
            {"name": f"{stage} rest", "recipe": noisy, "out": str(out / "cut")},
            {"name": f"{stage} exact", "recipe": exact, "out": str(out / "exact")},
        ]
    recomputing = runs.recipe("3", 1, **EXACT, student__gradient_checkpointing=True)
    plans.append({"name": "recomputed", "recipe": recomputing, "out": str(runs.folder / "again")})
    for stage in [stage for stage in POISONED if stage in chosen]:
        noisy = runs.recipe(stage, 1)
        plans += [
            {
                "name": f"{stage} {kind}", "recipe": noisy, "out": str(runs.folder / stage / kind),
                "poison": {"kind": kind, "step": 3},
            }
            for kind in ("loss", "gradient")
        ]  # fmt: skip
    runs.on_two(plans)
    return runs


@at(STAGES)
def test_two_ranks_resume_bit_for_bit_from_the_middle_of_a_step(runs: Runs, stage: str) -> None:
    whole, cut, rest = (runs.found[f"{stage} {name}"] for name in ("whole", "cut", "rest"))
    assert cut["stopped"]
    assert [step["step"] for step in rest["steps"]] == [3, 4]
    for got, wanted in zip(rest["steps"], whole["steps"][2:], strict=True):
        assert [got[term] for term in (*TERMS, "lr")] == [wanted[t] for t in (*TERMS, "lr")]
    for name in ("adapter/adapter_model.safetensors", "checkpoints/step-4/state.safetensors"):
        a, b = (load_file(runs.folder / stage / run / name) for run in ("whole", "cut"))
        assert a.keys() == b.keys()
        assert all(torch.equal(a[key], b[key]) for key in a)


@pytest.fixture(scope="module")
def alone(runs: Runs) -> list[dict[str, Any]]:
    """The same steps on one rank, a conversation at a time: nothing is ever padded."""
    recipe = runs.recipe("0", 1, **EXACT, data__accumulation=4)
    return runs.on_one(recipe, runs.folder / "alone")


@at(STAGES)
def test_two_ranks_measure_what_one_measures(
    runs: Runs, alone: list[dict[str, Any]], stage: str
) -> None:
    for got, wanted in zip(runs.found[f"{stage} exact"]["steps"], alone, strict=True):
        for term in TERMS:
            assert got[term] == pytest.approx(wanted[term], rel=1e-4), term
        assert got["grad_norms"] == pytest.approx(wanted["grad_norms"], rel=1e-4)
        assert got["epoch"] == wanted["epoch"] == pytest.approx(got["step"] * 4 / 9)
    one = load_file(runs.folder / "alone/adapter/adapter_model.safetensors")
    two = load_file(runs.folder / stage / "exact/adapter/adapter_model.safetensors")
    assert one.keys() == two.keys()
    for key in one:
        assert torch.allclose(two[key], one[key], atol=UPDATE), key


def test_recomputed_activations_of_cut_weights_leave_every_number_as_it_was(
    runs: Runs, alone: list[dict[str, Any]]
) -> None:
    for got, wanted in zip(runs.found["recomputed"]["steps"], alone, strict=True):
        for term in TERMS:
            assert got[term] == pytest.approx(wanted[term], rel=1e-4), (got["step"], term)


@pytest.mark.usefixtures("alone")
@at(STAGES)
def test_two_ranks_measure_held_out_records_as_one_does(runs: Runs, stage: str) -> None:
    """9 records, some of them without an image, are one too few for the last pair of batches.

    One rank has one record in each batch, so its numbers are free of any padding.
    """
    one = read_lines(runs.folder / "alone" / "validation.jsonl")
    two = read_lines(runs.folder / stage / "exact" / "validation.jsonl")
    assert [line["step"] for line in one] == [line["step"] for line in two] == [0, 2, 4]
    for got, wanted in zip(two, one, strict=True):
        assert (got["samples"], got["records"]) == (9, wanted["records"])
        for term in ("loss", "lm", "vis", "att"):
            assert got[term] == pytest.approx(wanted[term], rel=1e-4), term


@pytest.mark.parametrize("kind", ["loss", "gradient"])
@at(POISONED)
def test_nan_on_one_rank_stops_all_before_any_update(runs: Runs, stage: str, kind: str) -> None:
    found = runs.found[f"{stage} {kind}"]
    assert [step["step"] for step in found["steps"]] == [1, 2]
    assert found["untouched"]
    told = [errors[f"{stage} {kind}"] for errors in runs.errors]
    assert told[0] == told[1] != None  # noqa: E711 - both ranks, the same words
    assert "step 3: not finite" in str(told[0])
    # A loss tells whose records did it; a gradient is of all ranks.
    guilty = (1,) if kind == "loss" else (0, 1)
    wanted = [repr(record) for rank in guilty for record in read_in_step(runs, 3, rank)]
    named = str(told[0]).partition("on records ")[2].partition(";")[0]
    assert named.split(", ") == wanted


def read_in_step(runs: Runs, step: int, rank: int) -> list[str]:
    """Ids of the records that one of two ranks learns from in a step."""
    ids = [record.id for record in read_manifest(Path(runs.base["data"]["manifest"]))]
    order = StepOrder(
        length=len(ids), seed=runs.base["run"]["seed"], batch_size=1, accumulation=2,
        rank=rank, world=2, start=step - 1, stop=step,
    )  # fmt: skip
    return [ids[number] for numbers in order for number in numbers]


@pytest.fixture(scope="module")
def changed(runs: Runs) -> dict[str, list[dict[str, Any]]]:
    """Steps of runs that two ranks began, one went on with, and two finished."""
    exact = {"lora__dropout": 0.0, "run__save_every": 1}
    two = {stage: runs.recipe(stage, 1, **exact) for stage in CHANGED}
    outs = {stage: str(runs.folder / f"{stage}-changed") for stage in CHANGED}
    plans = [{"recipe": two[stage], "out": outs[stage]} for stage in CHANGED]
    names = [f"{stage} first" for stage in CHANGED]
    runs.on_two([{**p, "name": n, "stop_after": 1} for p, n in zip(plans, names, strict=True)])
    steps = {stage: list(runs.found[f"{stage} first"]["steps"]) for stage in CHANGED}
    for stage in CHANGED:
        one = runs.recipe(stage, 2, **exact)
        steps[stage] += stop_early(runs, one, Path(outs[stage]), after=3)
    names = [f"{stage} last" for stage in CHANGED]
    runs.on_two([{**p, "name": n} for p, n in zip(plans, names, strict=True)])
    for stage in CHANGED:
        steps[stage] += runs.found[f"{stage} last"]["steps"]
    return steps


@at(CHANGED)
def test_the_number_of_ranks_may_change_between_save_and_resume(
    runs: Runs,
    alone: list[dict[str, Any]],
    changed: dict[str, list[dict[str, Any]]],
    stage: str,
) -> None:
    """2 -> 1 -> 2: no sample is repeated or left out, every group keeps its own rate."""
    assert [step["step"] for step in changed[stage]] == [1, 2, 3, 4]
    for got, wanted in zip(changed[stage], alone, strict=True):
        for term in TERMS:
            assert got[term] == pytest.approx(wanted[term], rel=1e-4), (got["step"], term)
    one = load_file(runs.folder / "alone/checkpoints/step-4/state.safetensors")
    two = load_file(runs.folder / f"{stage}-changed/checkpoints/step-4/state.safetensors")
    for key in one:
        assert torch.allclose(two[key], one[key], atol=UPDATE), key


def stop_early(runs: Runs, recipe: dict[str, Any], out: Path, after: int) -> list[dict[str, Any]]:
    steps: list[dict[str, Any]] = []

    class EnoughError(Exception):
        pass

    def report(step: Step, _of: int) -> None:
        if step.step > after:
            raise EnoughError
        steps.append({name: getattr(step, name) for name in Step.__slots__})

    with pytest.raises(EnoughError):
        train(Recipe.model_validate(recipe), runs.cache, out, say=lambda _: None, report=report)
    return steps


def test_a_rank_that_is_killed_ends_the_others_soon(runs: Runs, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps(runs.recipe("2", 1, run__steps=100000, run__save_every=5)))
    out, told = tmp_path / "run", tmp_path / "stderr"
    words = ["train", str(recipe), "--cache", str(runs.cache), "--out", str(out)]
    last = out / "checkpoints" / "last"
    with told.open("w") as stderr:
        process = subprocess.Popen(
            torchrun("-m", "medalign", *words),
            env=environment(), stdout=subprocess.DEVNULL, stderr=stderr,
        )  # fmt: skip
        try:
            begun = time.monotonic()
            while not last.exists():
                assert process.poll() is None, told.read_text()[-2000:]
                assert time.monotonic() - begun < 120
                time.sleep(0.2)
            [victim] = children_with_rank(process.pid, "1")
            os.kill(victim, signal.SIGKILL)
            assert process.wait(timeout=60) != 0
        finally:
            process.kill()
            process.wait()
    state = load_file(last / "state.safetensors")
    assert all(torch.isfinite(value).all() for value in state.values())


def test_the_deepspeed_launcher_trains_too(runs: Runs, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps(runs.recipe("2", 1, run__steps=2)))
    out = tmp_path / "run"
    launcher = str(Path(sys.executable).with_name("deepspeed"))
    done = subprocess.run(
        [
            launcher, "--num_accelerators", "2", "--master_port", str(free_port()),
            "--module", "medalign", "train", str(recipe),
            "--cache", str(runs.cache), "--out", str(out),
        ],
        env={**environment(), "DS_ACCELERATOR": "cpu"},
        capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads((out / "environment.json").read_text())["ranks"] == 2
    assert (out / "adapter" / "adapter_model.safetensors").is_file()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def children_with_rank(parent: int, rank: str) -> list[int]:
    """Processes started by `parent` whose environment names that rank."""
    found = []
    for task in Path(f"/proc/{parent}/task").iterdir():
        for child in (task / "children").read_text().split():
            settings = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
            if f"RANK={rank}".encode() in settings:
                found.append(int(child))
    return found
