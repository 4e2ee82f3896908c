"""`medalign demo`."""

import time
from pathlib import Path

from ..runtime.arguments import OutFolder

_PLAINLY = (
    "Expert and student are tiny models with random weights: this shows that the machinery runs, "
    "not that anything was learnt about medicine."
)


def demo(out: OutFolder = Path("medalign-demo")) -> None:
    """Do the whole job on packaged real images: cache, train, answer, score, draw.

    A second run reuses the first run's files, and finishes what is missing.
    """
    started = time.monotonic()
    from ..trainer.machine import quiet_libraries

    quiet_libraries()
    from rich.console import Console

    from ..trainer.run.live import live_view
    from .run import run_demo
    from .show import draw, report, table

    with live_view() as view:
        done = run_demo(out, view.say, view.report)
        figures = draw(done)
        view.say("report   every held-back question with answers and attention")
        page = report(done)
    console = Console()
    console.print(table(done))
    lines = [
        f"cache        {out / 'cache'}: {done.images} images; as float32 similarity matrices they "
        f"would take {done.gram_bytes / 2**20:.1f} MB",
        f"runs         {', '.join(str(run.out) for run in done.trained)}",
        f"answers      {out / 'predictions'}, scores {out / 'scores'}",
        f"figures      {figures[0]} and {len(figures) - 1} attention overlays beside it",
        f"report       {page}: open it in a browser",
        f"try          medalign eval generate {out / 'runs' / 'medalign'} "
        f"{done.data / 'test.jsonl'} --images {done.data} --decoder vcd --out vcd.jsonl",
        f"time         {time.monotonic() - started:.0f} s",
        "",
        _PLAINLY,
    ]
    console.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)
