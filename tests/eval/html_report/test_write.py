import base64
import hashlib
import json
import re
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from medalign.cli import app
from medalign.eval import tables as shown_numbers
from medalign.eval.compare import compare
from medalign.eval.html_report.gather import gather
from medalign.eval.html_report.page import MANY
from medalign.eval.html_report.write import Written, evenly, write_report
from medalign.eval.predictions import AnswersError
from medalign.eval.score import score
from medalign.eval.tables import labels
from medalign.runtime.arguments import ArgumentError
from medalign.teacher_cache.reader import TeacherCache

Parse = Callable[[str], Any]


def write(task: Any, out: Path, **options: Any) -> Written:
    options.setdefault("cache", TeacherCache.open(task.store))
    predictions = options.pop("predictions", task.predictions)
    return write_report(predictions, task.manifest, task.images, "vqa", out, **options)


@pytest.fixture(scope="module")
def html(task: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    out = tmp_path_factory.mktemp("page") / "new" / "report.html"
    written = write(task, out)
    assert written.size_bytes == out.stat().st_size
    assert (written.records, written.shown) == (6, 6)
    return out.read_text(encoding="utf-8")


def fit(text: str) -> str:
    return text.replace("\ud800", "\ufffd").replace("\x07", "\ufffd")


def test_every_answer_is_there_once_under_its_decoder(task: Any, html: str, parse: Parse) -> None:
    cards = {next(c.all("span", class_="id")).text: c for c in parse(html).all("article")}
    assert len(cards) == 6
    for number, label in enumerate(("greedy", "vcd")):
        for line in task.answers(number):
            [answer] = [
                each
                for each in cards[line["id"]].all("div", class_="answer")
                if next(each.all("span", class_="who")).text == label
            ]
            [text] = answer.all("p")
            assert text.text == (fit(line["text"]) or "an empty answer")
            [reference] = cards[line["id"]].all("div", class_="reference")
            assert next(reference.all("p")).text == line["answer"]


def test_right_and_wrong_are_the_values_of_the_metric(html: str, parse: Parse) -> None:
    cards = list(parse(html).all("article"))
    marked = [[mark.text for mark in c.all("span", class_="verdict")] for c in cards]
    assert [["✓" in text for text in each] for each in marked] == [
        [True, False],
        [True, True],
        [False, False],
        [False, False],
        [True, False],
        [True, False],
    ]
    assert [c.attributes["data-wrong"] for c in cards] == ["1", "", "0 1", "0 1", "1", "1"]
    # A full stop and case make no difference.
    assert [c.attributes["data-differ"] for c in cards] == ["1", "", "1", "1", "1", "1"]
    assert [c.attributes["data-type"] for c in cards[:3]] == ["CLOSED", "OPEN", "OPEN"]
    assert "open recall" not in cards[1].text
    assert "recall 100" in cards[1].text


def test_hostile_text_stays_text_and_the_page_loads_nothing(html: str, parse: Parse) -> None:
    page = parse(html)
    [script] = page.all("script")
    assert "alert" not in script.text
    assert html.count("&lt;script&gt;alert") == 3  # id, question, answer
    for element in page.all():
        for name, value in element.attributes.items():
            assert not name.startswith("on")
            if name in ("href", "src", "action", "srcset"):
                assert value.startswith(("data:image/", "#"))
            assert element.name not in ("link", "iframe", "object", "a", "img")
    for style in (*page.all("style"), script):
        assert not re.search(r"https?:|//|@import|url\(", style.text)
    [policy] = [m for m in page.all("meta") if "http-equiv" in m.attributes]
    digest = base64.b64encode(hashlib.sha256(script.text.encode()).digest()).decode()
    assert "default-src 'none'" in policy.attributes["content"]
    assert f"script-src 'sha256-{digest}'" in policy.attributes["content"]


def test_the_tables_hold_what_score_and_compare_say(task: Any, html: str, parse: Parse) -> None:
    text = parse(html).text
    for path in task.predictions:
        for metric in score(path, task.manifest, "vqa").metrics:
            ends = shown_numbers.interval(metric.interval, metric.unit, pattern="{} to {}")
            assert f"{metric.value:.1f} {ends}" in text
            assert metric.definition in text
    first, second = task.predictions
    for found in compare(first, second, task.manifest, "vqa").metrics:
        ends = shown_numbers.interval(found.interval, found.unit, signed=True, pattern="{} to {}")
        difference = shown_numbers.value(found.difference, found.unit, signed=True)
        assert f"{difference} {ends}, p {found.p:.3f}" in text


def test_an_image_is_embedded_once_and_shown_by_every_sample(html: str, parse: Parse) -> None:
    page = parse(html)
    [defs] = page.all("defs")
    pictures = {image.attributes["id"]: image for image in defs.all("image")}
    assert sorted(pictures) == ["picture-0", "picture-1", "picture-2"]
    shown = [use.attributes["href"] for use in page.all("use")]
    assert shown == ["#picture-0"] * 2 + ["#picture-1"] * 2 + ["#picture-2"]
    data = pictures["picture-1"].attributes["href"].partition("base64,")[2]
    deep = np.asarray(Image.open(BytesIO(base64.b64decode(data))))
    # 16 bits stretched as the pixel reader does it, not cut to their low or high byte.
    assert deep.shape == (50, 30, 3)
    assert deep.mean() == pytest.approx(127, abs=10)


def test_the_experts_attention_comes_from_the_row_of_the_image(
    task: Any, html: str, parse: Parse
) -> None:
    cards = list(parse(html).all("article"))
    for card, path in ((cards[0], "wide.png"), (cards[2], "deep.png")):
        [layer] = card.all("g", class_="look-0")
        [heat] = layer.all("image")
        data = heat.attributes["href"].partition("base64,")[2]
        opacity = np.asarray(Image.open(BytesIO(base64.b64decode(data))))[..., 3].ravel()
        attention = TeacherCache.open(task.store)[path].attention
        assert opacity[np.argmax(attention)] == opacity.max()
        assert list(np.argsort(opacity, kind="stable")[:4]) == list(np.argsort(attention)[:4])
        choices = [i.attributes["value"] for i in card.all("input")]
        assert choices == ["", "0"]
    assert not list(cards[4].all("g"))
    assert not list(cards[4].all("input"))


def test_what_is_missing_is_said_on_the_card_and_returned(
    task: Any, tmp_path: Path, parse: Parse
) -> None:
    written = write(task, tmp_path / "r.html")
    gone, other = sorted(written.problems)
    assert re.fullmatch(r"gone.png cannot be shown: .*no such file.*", gone)
    assert "other.png: no expert attention" in other
    cards = list(parse((tmp_path / "r.html").read_text()).all("article"))
    assert [len(list(card.all("p", class_="missing"))) for card in cards] == [0, 0, 0, 0, 1, 1]
    assert next(cards[5].all("p", class_="missing")).text == gone
    assert not list(cards[5].all("svg"))


def test_an_image_that_changed_has_no_attention(task: Any, tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for path in task.images.iterdir():
        (images / path.name).write_bytes(path.read_bytes())
    Image.new("RGB", (40, 20), "red").save(images / "wide.png")
    written = write_report(
        task.predictions,
        task.manifest,
        images,
        "vqa",
        tmp_path / "r.html",
        cache=TeacherCache.open(task.store),
    )
    assert any("wide.png: no expert attention: row 0 of" in line for line in written.problems)


def test_equal_input_gives_equal_bytes(task: Any, html: str, tmp_path: Path) -> None:
    write(task, tmp_path / "again.html")
    assert (tmp_path / "again.html").read_text(encoding="utf-8") == html


def test_samples_are_bounded_evenly_chosen_and_counted(
    task: Any, html: str, tmp_path: Path, parse: Parse
) -> None:
    assert evenly(6, 3) == [0, 2, 4]
    assert evenly(7, 3) == [0, 2, 4]
    assert evenly(3, 3) == evenly(3, 9) == evenly(3, 0) == [0, 1, 2]
    assert "6 records; all are shown below" in html
    written = write(task, tmp_path / "r.html", samples=2)
    text = (tmp_path / "r.html").read_text()
    assert (written.shown, written.records) == (2, 6)
    assert len(list(parse(text).all("article"))) == 2
    assert "6 records; 2 of them, evenly chosen, are shown below; scores are over all" in text
    assert len(text) < len(html)
    small = write(task, tmp_path / "s.html", samples=2, side=16)
    assert small.size_bytes < written.size_bytes


def test_one_file_has_no_comparison_and_no_filter_of_differences(
    task: Any, tmp_path: Path, parse: Parse
) -> None:
    write(task, tmp_path / "r.html", predictions=task.predictions[:1], cache=None)
    page = parse((tmp_path / "r.html").read_text())
    assert "differ from" not in page.text
    assert {e.attributes["id"] for e in next(page.all("form")).all() if "id" in e.attributes} == {
        "verdict",
        "type",
        "search",
        "shown",
    }


def test_many_files_have_a_row_each(task: Any, tmp_path: Path, parse: Parse) -> None:
    files = [task.predictions[0]]
    for k in range(MANY):
        rows = [{**row, "decoder": f"d{k}"} for row in task.answers(1)]
        files.append(tmp_path / f"{k}.jsonl")
        files[-1].write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    write_report(files, task.manifest, task.images, "vqa", tmp_path / "r.html", samples=1)
    page = parse((tmp_path / "r.html").read_text(encoding="utf-8"))
    scores, differences = page.all("table", class_="by-file")
    heads = [each.text for each in next(scores.all("thead")).all("th")]
    assert heads[:3] == ["file", "closed_accuracy strict, n 4", "overall_accuracy strict, n 6"]
    shown = [row.text for row in next(scores.all("tbody")).all("tr")]
    assert [row.split("d")[0] for row in shown] == ["gree", *[""] * MANY]
    of = {(m.protocol, m.name): m for m in score(files[1], task.manifest, "vqa").metrics}
    metric = of["strict", "overall_accuracy"]
    ends = shown_numbers.interval(metric.interval, metric.unit, pattern="{} to {}")
    assert f"{metric.value:.1f} {ends}" in shown[1]
    assert len(list(next(differences.all("tbody")).all("tr"))) == MANY
    found = compare(files[0], files[1], task.manifest, "vqa").metrics
    [change] = [m for m in found if (m.protocol, m.name) == ("strict", "overall_accuracy")]
    assert shown_numbers.value(change.difference, change.unit, signed=True) in differences.text


def test_files_are_called_by_decoder_or_by_what_tells_them_apart() -> None:
    paths = [Path("x/a.jsonl"), Path("x/b.jsonl"), Path("y/a.jsonl")]
    assert labels(paths[:2], ["greedy", "vcd"]) == ["greedy", "vcd"]
    assert labels(paths[:2], ["greedy", "greedy"]) == ["a (greedy)", "b (greedy)"]
    assert labels(paths, ["greedy"] * 3)[2] == "y/a.jsonl (greedy)"


def test_reports_have_values_and_no_verdict(task: Any, tmp_path: Path, parse: Parse) -> None:
    out = tmp_path / "r.html"
    write_report(task.predictions, task.manifest, task.images, "report", out, metrics=["rouge_l"])
    page = parse(out.read_text(encoding="utf-8"))
    cards = list(page.all("article"))
    assert not list(page.all("span", class_="kind"))
    assert "rouge l 100" in next(cards[1].all("div", class_="answer")).text
    assert not list(page.all("select", id="verdict"))
    assert not list(page.all("span", class_="right"))
    assert all(card.attributes["data-wrong"] == "" for card in cards)


def test_a_metric_that_was_asked_for_and_has_no_value_is_told(
    task: Any, tmp_path: Path, parse: Parse
) -> None:
    out = tmp_path / "r.html"
    files: Any = task.predictions, task.manifest, task.images, "vqa", out
    plain = write_report(*files).problems
    problem, *others = write_report(*files, metrics=["choice", "closed"]).problems
    assert problem == "choice: not computed: no record has `options`"
    assert tuple(others) == plain
    assert problem in parse(out.read_text(encoding="utf-8")).text


def test_a_multiple_choice_question_shows_its_options(
    task: Any, tmp_path: Path, parse: Parse
) -> None:
    row = json.loads(task.manifest.read_text().splitlines()[1]) | {"options": ["left lung", "<b>"]}
    (tmp_path / "m.jsonl").write_text(json.dumps(row))
    lines = task.predictions[0].read_text().splitlines()
    (tmp_path / "p.jsonl").write_text(
        "".join(f"{line}\n" for line in lines if json.loads(line)["id"] == "b")
    )
    files, out = ([tmp_path / "p.jsonl"], tmp_path / "m.jsonl"), tmp_path / "r.html"
    write_report(*files, task.images, "vqa", out)
    [card] = parse(out.read_text()).all("article")
    assert card.attributes["data-type"] == "CHOICE"
    assert [option.text for option in card.all("li")] == ["left lung", "<b>"]


def test_values_over_several_samples_alone_are_left_out(task: Any) -> None:
    found = gather(task.predictions, task.manifest, "vqa").files[0]
    assert found.values["strict", "overall_accuracy"] == {0: 1, 1: 1, 2: 0, 3: 0, 4: 1, 5: 1}
    assert found.values["strict", "open_recall"] == {1: 1, 2: 0}
    assert found.right(0)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"predictions": []}, "at least one predictions file"),
        ({"twice": True}, "is given twice"),
        ({"cut": True}, r"1 ids are answered in .* and not in"),
        ({"over": True}, "--out would overwrite"),
        ({"no_images": True}, "is no folder"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(
    task: Any, tmp_path: Path, change: dict[str, Any], problem: str
) -> None:
    predictions, out, images = change.get("predictions", task.predictions), "r.html", task.images
    if "twice" in change:
        predictions = [predictions[0]] * 2
    if "cut" in change:
        short = tmp_path / "short.jsonl"
        short.write_bytes(predictions[1].read_bytes().partition(b"\n")[2])
        predictions = [predictions[0], short]
    target = predictions[0] if "over" in change else tmp_path / out
    images = tmp_path / "nowhere" if "no_images" in change else images
    before = target.read_bytes() if target.exists() else None
    with pytest.raises(AnswersError, match=problem):
        write_report(
            predictions, task.manifest, images, "vqa", target, allow_missing="cut" in change
        )
    assert (target.read_bytes() if target.exists() else None) == before


def test_progress_counts_every_sample(task: Any, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    write(task, tmp_path / "r.html", samples=3, progress=lambda *step: told.append(step))
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_options_of_a_student_need_one(task: Any, tmp_path: Path) -> None:
    words = ["eval", "report", *task.predictions, task.manifest, "--images", task.images]
    words += ["--task", "vqa", "--out", tmp_path / "r.html", "--layer", "1"]
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert isinstance(result.exception, ArgumentError)
    assert "--student and --layer describe a --source" in str(result.exception)


def test_the_command_writes_says_where_and_fails_on_missing_images(
    task: Any, tmp_path: Path
) -> None:
    out = tmp_path / "r.html"
    words = ["eval", "report", *task.predictions, task.manifest, "--images", task.images]
    words += ["--task", "vqa", "--out", out, "--cache", task.store, "--metrics", "closed"]
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == 1, result.output
    assert f"{out}: 6 of 6 samples, 0." in result.stdout
    assert "gone.png cannot be shown" in result.stderr
    lines = [line for line in task.manifest.read_text().splitlines() if "gone" not in line]
    assert "closed_accuracy" in out.read_text()
    assert "open_recall" not in re.sub(r"<details.*?</details>", "", out.read_text())
    whole = tmp_path / "m.jsonl"
    whole.write_text("\n".join(lines))
    kept = {json.loads(line)["id"] for line in lines}
    short = tmp_path / "p.jsonl"
    answers = task.predictions[0].read_text().splitlines()
    short.write_text("\n".join(a for a in answers if json.loads(a)["id"] in kept) + "\n")
    words = ["eval", "report", short, whole, "--images", task.images, "--task", "vqa"]
    result = CliRunner().invoke(app, [str(word) for word in (*words, "--out", out)])
    assert result.exit_code == 0, result.output
