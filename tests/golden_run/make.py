"""Write a student, a store, a run, predictions and scores of 0.1. Not run by tests.

Made once with the state of 2026-11-23, before the code moved, so that what users have stays
readable: `python make.py FOLDER` in a folder with `medalign` of that state on the path.
Images: BBBC038 (CC0), reduced to 96 pixels.
"""

import json
import subprocess
import sys
from pathlib import Path

from PIL import Image

from medalign.trainer.students.tiny import DEMO_TEXTS, TinyStudent, make_student

SAMPLE = Path(sys.argv[1])
NAMES = ("path_13f2bec0a24c", "path_4d14a3629b6a", "path_7773ac91af61", "path_ad473063dab4")
QUESTIONS = (
    ("Is this a radiology image?", "No", "CLOSED"),
    ("What kind of structure does the mask outline?", "Cell nuclei", "OPEN"),
)


def run(*words: str) -> None:
    subprocess.run([sys.executable, "-m", "medalign", *words], check=True)


Path("images").mkdir()
records = []
for name in NAMES:
    with Image.open(SAMPLE / f"{name}.png") as image:
        image.convert("RGB").resize((96, 72)).quantize(32).save(f"images/{name}.png")
    for number, (question, answer, kind) in enumerate(QUESTIONS):
        turns = [("human", f"<image>\n{question}"), ("gpt", answer)]
        records.append(
            {
                "id": f"{name}-q{number}",
                "image": f"{name}.png",
                "answer_type": kind,
                "conversations": [{"from": who, "value": text} for who, text in turns],
            }
        )
Path("manifest.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
sizes = TinyStudent(
    image_size=56, width=16, layers=3, heads=2, key_heads=1, tower_width=16, vocabulary=300
)
make_student(Path("student"), DEMO_TEXTS, sizes)
run("cache", "build", "manifest.jsonl", "--images", "images", "--expert", "demo",
    "--grid", "4x4", "--out", "cache")  # fmt: skip
run("cache", "seal", "cache")
settings = {
    "student.path": "student", "data.manifest": "manifest.jsonl", "data.images": "images",
    "data.batch_size": 2, "data.accumulation": 1, "loss.layer": 1, "lora.rank": 2,
    "run.save_every": 2, "data.workers": 0,
}  # fmt: skip
words = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
run("train", "demo", "--cache", "cache", "--out", "run", *words, "--set", "run.steps=4")
run("eval", "generate", "run", "manifest.jsonl", "--images", "images", "--decoder", "greedy",
    "--max-new-tokens", "6", "--out", "predictions.jsonl")  # fmt: skip
# Random weights answer nothing right; half of the answers become the references.
answers = [json.loads(line) for line in Path("predictions.jsonl").read_text().splitlines()]
for answer in answers[:4]:
    answer["text"] = answer["answer"]
answers[4]["text"] = "yes"
Path("half_right.jsonl").write_text("".join(json.dumps(answer) + "\n" for answer in answers))
run("eval", "score", "half_right.jsonl", "manifest.jsonl", "--task", "vqa", "--out", "scores.json")
