"""With lmms-eval itself, where it is installed: `pip install lmms-eval`."""

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from medalign.eval.lmms_eval.tasks import TASKS, VQA_SCORES, metric_name, question_of
from medalign.eval.predictions import read_answers

# Its imports warn of its own dependencies.
pytestmark = pytest.mark.filterwarnings("ignore")

SET = "medalign_slake"


@pytest.fixture(scope="module")
def lmms_eval(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """Import a module of it; its caches go into a folder of the test."""
    pytest.importorskip("lmms_eval")
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HOME", str(tmp_path_factory.mktemp("hf")))
        patch.setenv("HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("datasets")))
        importlib.import_module("lmms_eval.evaluator")
    return importlib.import_module


@pytest.fixture
def manager(lmms_eval: Callable[[str], Any], placed: Path) -> Any:
    assert placed.is_dir()
    tasks = lmms_eval("lmms_eval.tasks")
    return tasks.TaskManager(include_path=str(TASKS), include_defaults=False)


def test_the_registry_finds_the_model(lmms_eval: Callable[[str], Any]) -> None:
    registry = lmms_eval("lmms_eval.models").ModelRegistryV2()
    register = lmms_eval("medalign.eval.lmms_eval.register")
    registry.register_manifest(register.manifest())
    found = registry.get_model_class("medalign")
    assert found.__module__ == "medalign.eval.lmms_eval.model"


def test_chat_models_get_image_and_question(manager: Any) -> None:
    (task,) = manager.load_task_or_group(SET, task_type="chat").values()
    doc = task.test_docs()[2]
    (message,) = task.doc_to_messages(doc)
    kinds = {part["type"]: part for part in message["content"]}
    assert kinds["text"]["text"] == question_of(doc) == "Which organ is shown?"
    assert kinds["image"]["url"].size == (50, 40)


def test_a_whole_evaluation_gives_the_scores_of_eval_score(
    lmms_eval: Callable[[str], Any],
    manager: Any,
    data: Path,
    adapter: Path,
    tmp_path: Path,
    medalign: Callable[..., str],
) -> None:
    model = lmms_eval("medalign.eval.lmms_eval.model").MedAlign(str(adapter), batch_size=2)
    results = lmms_eval("lmms_eval.evaluator").simple_evaluate(
        model=model,
        tasks=[SET, "medalign_iu_xray_report"],
        task_manager=manager,
        bootstrap_iters=0,
        log_samples=True,
    )
    folder = data / "slake"
    out = tmp_path / "p.jsonl"
    medalign(
        "eval", "generate", adapter, folder / "test.jsonl", "--images", folder / "images",
        "--out", out,
    )  # fmt: skip
    said = {one.id: one.text for one in read_answers(out)}
    samples = results["samples"][SET]
    assert [one["doc"]["id"] for one in samples] == list(said)
    assert [one["filtered_resps"][0] for one in samples] == list(said.values())
    words = ("eval", "score", out, folder / "test.jsonl", "--task", "vqa")
    scores = json.loads(medalign(*words, "--json", "--out", tmp_path / "s.json"))
    found = results["results"][SET]
    for metric in scores["metrics"]:
        name = f"{metric_name(metric['protocol'], metric['name'])},none"
        if (metric["protocol"], metric["name"]) in VQA_SCORES:
            assert found[name] == pytest.approx(metric["value"] / 100)
    assert "medalign_meteor,none" in results["results"]["medalign_iu_xray_report"]
