"""A conversion holds a few megabytes, however large the model is."""

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

MEASURED = """
import json, sys, threading, time
from contextlib import contextmanager
from pathlib import Path
import torch
from medalign.trainer.convert.convert import Wish, convert
from medalign.trainer.convert.checkpoint_families import ORIGINALS

WISH = Wish(shard_bytes=50_000_000)

def own():
    for line in open("/proc/self/status"):
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024

peak = begin = 0

@contextmanager
def stage(what, total):
    global begin, peak
    begin = begin or own()  # from here on: hashing, converting
    def told(count):
        global peak
        peak = max(peak, own())
    yield told

for source in map(Path, sys.argv[1:]):
    begin = peak = 0
    convert(source, source / "../out" / source.name, ORIGINALS["llava-med"], WISH, stage)
    print(json.dumps(peak - begin))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_memory_does_not_grow_with_the_model(originals: ModuleType, tmp_path: Path) -> None:
    sizes = originals.Sizes(width=1024, layers=6)
    forms = ("safetensors", "bin")
    sources = [
        originals.make_llava_med(tmp_path / form, sizes, form=form, shards=1) for form in forms
    ]
    weights = sum(path.stat().st_size for path in sources[0].glob("*model*"))
    assert weights > 60_000_000
    command = [sys.executable, "-c", MEASURED, *sources]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    for form, line in zip(forms, done.stdout.splitlines(), strict=True):
        grown = json.loads(line)
        assert grown < 30_000_000, f"{form}: {grown:,} bytes for a model of {weights:,}"
