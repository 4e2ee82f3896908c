"""A plan of two real ranks: what only one of them meets ends both, with the same reason."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from medalign.trainer.prepared import with_paths
from medalign.trainer.recipe.recipe import Recipe


def test_what_one_rank_meets_ends_the_plan_on_all(
    dataset: Callable[..., tuple[Path, Path, Path]],
    students: Callable[..., Path],
    recipe: Callable[..., Recipe],
    tmp_path: Path,
) -> None:
    manifest, images, cache = dataset()
    chosen = recipe(**{"run.timeout_minutes": 1.0})
    chosen = with_paths(chosen, student=students(), manifest=manifest, images=images)
    setup = {"recipe": chosen.model_dump(mode="json"), "cache": str(cache)}
    (tmp_path / "setup.json").write_text(json.dumps(setup | {"out": str(tmp_path / "run")}))
    script = Path(__file__).with_name("plan_scenarios.py")
    rendezvous = ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    launcher = [sys.executable, "-m", "torch.distributed.run", *rendezvous]
    # A rank's variables would make the launcher's children ranks of this process.
    ours = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT", "MASTER_ADDR")
    clean = {name: value for name, value in os.environ.items() if name not in ours}
    done = subprocess.run(
        [*launcher, "--nproc_per_node", "2", script, tmp_path / "setup.json", tmp_path],
        capture_output=True,
        text=True,
        timeout=300,
        env={**clean, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert "free memory; on a CPU" in first["little memory"]["not measured"]
    full = first["full in a step"]["not measured"]
    assert full.startswith("out of memory: more is needed than the")
    assert first["a changed image"] == second["a changed image"]
    assert first["a changed image"] == {"error": "image 3.png changed"}
    assert first["none"] == {"not measured": "", "world": 2}
    assert all(found == {"ended": True} for name, found in second.items() if "changed" not in name)
