import importlib
import tomllib
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from medalign.eval.lmms_eval.tasks import (
    REPORT_SCORES,
    TASKS,
    VQA_SCORES,
    HarnessError,
    find_set,
    images_of,
    mean_score,
    metric_name,
    question_of,
    record_of,
    score_question,
    score_report,
    slake,
)
from medalign.eval.metric_models.locate import Instruments
from medalign.eval.metrics.definitions import vqa_definitions
from medalign.eval.predictions import Pair
from medalign.eval.report_scores import report_scores
from medalign.eval.vqa_scores import vqa_scores
from medalign.pipeline.pixels import read_image

ROOT = Path(__file__).parents[3]
NAMES = ("slake", "vqa_rad", "pathvqa", "iu_xray_vqa", "iu_xray_report")
# Keys of a task file in lmms-eval 0.7.3 that the tasks may use.
KEYS = {
    "tag", "task", "dataset_path", "dataset_kwargs", "test_split", "output_type", "process_docs",
    "doc_to_visual", "doc_to_text", "doc_to_target", "process_results", "generation_kwargs",
    "lmms_eval_specific_kwargs", "cluster_key", "metric_list", "metadata",
}  # fmt: skip


class Loader(yaml.SafeLoader):
    """Reads a task file as lmms-eval does: `!function a.b.c` is what module a.b calls c."""


def function(loader: Any, node: Any) -> Any:
    module, _, name = loader.construct_scalar(node).rpartition(".")
    return getattr(import_module(module), name)


Loader.add_constructor("!function", function)


def load(path: Path) -> dict[str, Any]:
    values: dict[str, Any] = yaml.load(path.read_text(), Loader)
    included = values.pop("include", None)
    return values if included is None else {**load(path.with_name(included)), **values}


@pytest.mark.parametrize("name", NAMES)
def test_a_task_file_holds_what_lmms_eval_reads(name: str) -> None:
    task = load(TASKS / f"medalign_{name}.yaml")
    assert task.keys() == KEYS
    assert task["task"] == f"medalign_{name}"
    assert task["process_docs"].__name__ == name
    assert task["output_type"] == "generate_until"
    assert task["generation_kwargs"]["until"] == []  # else lmms-eval stops at an empty line
    (file,) = task["dataset_kwargs"]["data_files"].values()
    assert task["dataset_path"] == "text"  # a reader of local files, nothing of a hub
    assert (TASKS / file).is_file()


@pytest.mark.parametrize("name", NAMES)
def test_metrics_of_a_task_are_those_that_answers_get(name: str) -> None:
    listed = load(TASKS / f"medalign_{name}.yaml")["metric_list"]
    keys = REPORT_SCORES if name.endswith("report") else VQA_SCORES
    assert [one["metric"] for one in listed] == [metric_name(*key) for key in keys]
    known = vqa_definitions()
    for key, one in zip(keys, listed, strict=True):
        assert one["aggregation"] is mean_score
        lower = key in known and known[key].better == "lower"
        assert one["higher_is_better"] is not lower


def test_there_are_no_other_tasks_and_all_files_are_shipped() -> None:
    assert {path.name for path in TASKS.glob("*.yaml")} == {f"medalign_{n}.yaml" for n in NAMES}
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert tools["tool"]["setuptools"]["package-data"]["medalign.eval.lmms_eval"] == ["tasks/*"]


def test_the_entry_point_is_there() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    module, _, name = project["entry-points"]["lmms_eval.models"]["medalign"].partition(":")
    assert callable(getattr(importlib.import_module(module), name))


def test_rows_are_the_records_of_the_manifest(docs: Callable[[str], Any], data: Path) -> None:
    rows = docs("slake")
    assert [row["id"] for row in rows] == ["q0", "q1", "q2"]
    assert rows[2]["answer"] == "the left lung"
    assert rows[0]["cluster"] == rows[1]["cluster"] != rows[2]["cluster"]  # one image, another one
    assert record_of(rows[2]).answer_type == "OPEN"
    assert record_of(rows[2]).fields == {"qid": 2}
    (image,) = images_of(rows[2])
    expected = read_image(data / "slake" / "images" / "1.png").rgb
    assert np.array_equal(np.asarray(image), expected)


def test_a_report_is_the_reference_of_a_report(docs: Callable[[str], Any]) -> None:
    assert docs("iu_xray_report")[0]["answer"] == "The heart is normal in size. No."


def test_placeholders_in_front_are_left_to_the_model_others_stay() -> None:
    options = {"pre_prompt": "Look. ", "post_prompt": " Be short."}
    assert question_of({"question": "<image>\n<image>\nWhy?"}, options) == "Look. Why? Be short."
    middle = "Here <image> and there <image>: why?"
    assert question_of({"question": f"<image>\n{middle}"}) == f"<image>\n{middle}"


def test_means_over_rows_are_the_scores_of_eval_score(docs: Callable[[str], Any]) -> None:
    rows = docs("slake")
    said = ["Yes, there is.", "Yes", "left left lung"]
    scored = [score_question(row, [text]) for row, text in zip(rows, said, strict=True)]
    pairs = [
        Pair(record=record_of(row), reference=row["answer"], prediction=text, missing=False)
        for row, text in zip(rows, said, strict=True)
    ]
    whole, _ = vqa_scores(pairs)
    for key in VQA_SCORES:
        name = metric_name(*key)
        items = [one[name] for one in scored if name in one]
        assert bool(items) == (key in whole)
        if items:
            assert mean_score(items) == pytest.approx(whole[key].value())
    assert mean_score([one["strict_hallucination_rate"] for one in scored[:1]]) == 1.0
    assert "strict_open_recall" not in scored[0]


def test_reports_score_as_eval_score_scores_them(docs: Callable[[str], Any]) -> None:
    row = docs("iu_xray_report")[0]
    text = "Assistant: The heart is normal in"
    pair = Pair(record=record_of(row), reference=row["answer"], prediction=text, missing=False)
    wanted = ("bleu", "rouge_l", "meteor")
    whole = report_scores([pair], wanted, Instruments()).samples
    scored = score_report(row, [text])
    assert {metric_name(*key): s.value() for key, s in whole.items()} == {
        name: one["score"] for name, one in scored.items()
    }
    assert scored["authors_bleu"] != scored["medalign_bleu"]


def test_a_set_has_a_variable_of_its_own(
    placed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert find_set("slake") == (placed / "slake" / "test.jsonl", placed / "slake" / "images")
    monkeypatch.setenv("MEDALIGN_SLAKE", str(placed / "iu-xray-report"))
    assert find_set("slake")[0] == placed / "iu-xray-report" / "test.jsonl"
    monkeypatch.setenv("MEDALIGN_SLAKE_IMAGES", str(tmp_path))
    assert find_set("slake")[1] == tmp_path


def test_what_is_not_there_is_told_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(HarnessError, match="neither MEDALIGN_VQA_RAD nor MEDALIGN_DATA is set"):
        find_set("vqa-rad")
    monkeypatch.setenv("MEDALIGN_DATA", str(tmp_path))
    with pytest.raises(HarnessError, match=r"vqa-rad/test\.jsonl does not exist"):
        find_set("vqa-rad")
    (tmp_path / "vqa-rad").mkdir()
    (tmp_path / "vqa-rad" / "test.jsonl").write_text("{}\n")
    with pytest.raises(HarnessError, match="set MEDALIGN_VQA_RAD_IMAGES"):
        find_set("vqa-rad")


def test_an_error_ends_lmms_eval_at_once(rows: Any) -> None:
    with pytest.raises(SystemExit, match="medalign: neither MEDALIGN_SLAKE"):
        slake(rows)


def test_the_command_names_the_folder_of_tasks(medalign: Callable[..., str]) -> None:
    assert Path(medalign("eval", "lmms-tasks").strip()) == TASKS


def test_images_are_read_as_everywhere(tmp_path: Path) -> None:
    deep = np.linspace(0, 60000, 12, dtype=np.uint16).reshape(3, 4)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    (image,) = images_of({"image_files": [str(tmp_path / "deep.png")]})
    assert np.asarray(image).max() == 255
