"""What does the rotation cost at inference, and LoRA beside the weights?

Makes a random student and a random adapter (LoRA of rank 64, projector, W) and hands both to
`medalign bench inference`, which does the measuring. Usage:

    python benchmarks/inference.py [--size tiny|1024|7b] [--tokens 32] [--repeats 20]
"""

import argparse
import tempfile
from pathlib import Path

import torch

from medalign.eval.bench.cost_table import as_table
from medalign.eval.bench.inference_cost import BenchPlan, bench_inference
from medalign.trainer.machine import quiet_libraries
from medalign.trainer.recipe.sections import LoraSection
from medalign.trainer.student import add_adapter, load_base, save_adapter
from medalign.trainer.students.spec import student_digest
from medalign.trainer.students.tiny import DEMO_TEXTS, TinyStudent, make_student

SIZES = {
    "tiny": TinyStudent(),
    "1024": TinyStudent(width=1024, layers=4, heads=16, key_heads=8, tower_width=512),
    "7b": TinyStudent(
        width=4096, layers=32, heads=32, key_heads=8, tower_width=1024, tower_layers=24, spread=0.02
    ),
}


def make_adapter(student: Path, folder: Path, layer: int) -> None:
    """Write an adapter with weights away from zero."""
    lora = LoraSection(rank=64)
    model = add_adapter(
        load_base(student, torch.bfloat16), layer, lora, rotation=True, projector=True
    )
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for parameter in trained.values():
            parameter.add_(0.01 * torch.randn_like(parameter))
    recipe = {
        "student": {"path": str(student), "geometry": "processor"},
        "loss": {"layer": layer},
    }
    about = {"recipe": recipe, "alpha": "black", "student": student_digest(student)}
    save_adapter(model, trained, folder, about)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--size", choices=list(SIZES), default="tiny")
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=20)
    given = parser.parse_args()
    quiet_libraries()
    torch.manual_seed(0)
    sizes = SIZES[given.size]
    with tempfile.TemporaryDirectory() as name:
        student, adapter = Path(name) / "student", Path(name) / "adapter"
        make_student(student, DEMO_TEXTS, sizes)
        make_adapter(student, adapter, sizes.layers // 2)
        wanted = BenchPlan(tokens=given.tokens, repeats=given.repeats, warmups=2)
        print(as_table(bench_inference(student, adapter, wanted, print)))


if __name__ == "__main__":
    main()
