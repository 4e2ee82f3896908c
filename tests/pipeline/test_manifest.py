import contextlib
import copy
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from medalign.pipeline.manifest import (
    ManifestError,
    Record,
    Turn,
    iter_records,
    read_manifest,
    resolve_image,
    shorten,
)

IN_TMP = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


def sample(**changes: Any) -> dict[str, Any]:
    raw: dict[str, Any] = {
        "id": "a",
        "image": "images/a.png",
        "conversations": [
            {"from": "human", "value": "<image>\nIs it normal?"},
            {"from": "gpt", "value": "No"},
        ],
    }
    raw.update(changes)
    return {name: value for name, value in raw.items() if value is not ...}


def talk(*values: str) -> list[dict[str, str]]:
    return [
        {"from": "human" if index % 2 == 0 else "gpt", "value": value}
        for index, value in enumerate(values)
    ]


def write(folder: Path, *records: Any) -> Path:
    path = folder / "train.jsonl"
    path.write_text("".join(f"{json.dumps(record)}\n" for record in records))
    return path


def problem(path: Path) -> str:
    with pytest.raises(ManifestError) as caught:
        read_manifest(path)
    return str(caught.value)


def test_a_record_keeps_all_that_it_holds(tmp_path: Path) -> None:
    raw = sample(
        id=7,
        image=["a.png", "sub/b.png"],
        conversations=talk("<image> and <image>?", "yes", "why?", ""),
        answer_type="closed",
        mask="masks/a.png",
        options=["x", "y"],
        own={"deep": [1, None]},
    )
    assert read_manifest(write(tmp_path, raw)) == [
        Record(
            id="7",
            images=("a.png", "sub/b.png"),
            conversations=(
                Turn("human", "<image> and <image>?"),
                Turn("gpt", "yes"),
                Turn("human", "why?"),
                Turn("gpt", ""),
            ),
            answer_type="CLOSED",
            fields={"mask": "masks/a.png", "options": ["x", "y"], "own": {"deep": [1, None]}},
            line=1,
        )
    ]


TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(
    lambda text: bool(text.strip()) and "<image>" not in text
)


@given(st.lists(st.tuples(TEXT, TEXT, TEXT), min_size=1, unique_by=lambda row: row[0]))
@IN_TMP
def test_lines_array_bom_and_blank_lines_read_alike(
    tmp_path: Path, rows: list[tuple[str, str, str]]
) -> None:
    raws = [
        sample(id=name, image=None, conversations=talk(question, answer))
        for name, question, answer in rows
    ]
    lines = "\r\n\n".join(json.dumps(raw, ensure_ascii=False) for raw in raws)
    path = tmp_path / "any"
    path.write_bytes(b"\xef\xbb\xbf" + lines.encode())
    by_line = read_manifest(path)
    path.write_text(f"\n {json.dumps(raws, indent=1)} ")
    by_item = read_manifest(path)
    assert [(each.id, each.conversations) for each in by_line] == [
        (name, (Turn("human", question), Turn("gpt", answer))) for name, question, answer in rows
    ]
    assert [each.line for each in by_line] == [1 + 2 * index for index in range(len(rows))]
    assert [each.line for each in by_item] == [1 + index for index in range(len(rows))]
    assert [each.conversations for each in by_item] == [each.conversations for each in by_line]


def test_text_only_records_are_records(tmp_path: Path) -> None:
    turns = talk("What is a lung?", "An organ")
    path = write(
        tmp_path,
        sample(id="null", image=None, conversations=turns),
        sample(id="missing", image=..., conversations=turns),
        sample(id="none", image=[], conversations=turns),
    )
    assert [record.images for record in read_manifest(path)] == [(), (), ()]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"id": ...}, "`id` is missing or null, must be a string that is not blank"),
        ({"id": " "}, "`id` is blank text"),
        ({"id": True}, "`id` is true or false"),
        ({"id": 1.5}, "`id` is a number"),
        ({"id": "\ud800"}, "`id` holds half a character"),
        ({"image": 3}, "`image` is a number, must be a string"),
        ({"image": ["a.png", None]}, "`image` is missing or null"),
        ({"image": "/etc/passwd"}, '`image` "/etc/passwd" is absolute'),
        ({"image": "C:/a.png"}, '`image` "C:/a.png" is absolute'),
        ({"image": "a/../../b.png"}, '`image` "a/../../b.png" holds `..`'),
        ({"image": "..\\b.png"}, "holds a backslash or NUL, separate folders by /"),
        ({"image": "a\0.png"}, "holds a backslash or NUL"),
        ({"image": "https://x.org/a.png"}, "is a URL, download the image"),
        ({"image": "."}, "names no file"),
        ({"mask": "../m.png"}, '`mask` "../m.png" holds `..`'),
        ({"mask": 1}, "`mask` is a number"),
        ({"answer_type": "maybe"}, '`answer_type` is "maybe", must be OPEN or CLOSED'),
        ({"answer_type": []}, "`answer_type` is a list"),
        ({"conversations": ...}, "`conversations` must be a list of at least one turn"),
        ({"conversations": []}, "`conversations` must be a list of at least one turn"),
        ({"conversations": ["hi"]}, "turn 1 is text, a turn is an object"),
        ({"conversations": [{"from": "user", "value": "x"}]}, 'turn 1 is from "user", known are'),
        ({"conversations": [{"from": [], "value": "x"}]}, "turn 1 is from a list, known are"),
        ({"conversations": [{"from": "gpt", "value": "x"}]}, "turn 1 is from gpt, must be from"),
        ({"conversations": talk("<image>", "x")[:1] * 2}, "turn 2 is from human, must be from gpt"),
        ({"conversations": talk("  ")}, "`turn 1 (human)` is blank text"),
        ({"conversations": [{"from": "human"}]}, "`turn 1 (human)` is missing or null"),
        ({"conversations": talk("<image>", "<image>")}, "turn 2 (gpt) holds <image>, only human"),
        (
            {"conversations": [*talk("<image>"), {"from": "gpt", "value": 3}]},
            "turn 2 (gpt) has a number as `value`",
        ),
        ({"conversations": talk("no place")}, "hold 0 <image> but `image` names 1"),
        ({"image": None}, "hold 1 <image> but `image` names 0; they must be as many"),
    ],
)
def test_a_broken_rule_is_named_with_its_line(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    path = write(tmp_path, sample(id="fine"), sample(**changes))
    message = problem(path)
    assert message.startswith(f"{path}: line 2: ")
    assert said in message
    assert "\n" not in message


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    lines = [json.dumps(sample()), "{broken", json.dumps(sample(id=None, image="/x"))]
    lines += [json.dumps(sample()), json.dumps([])]
    path.write_text("\n".join(lines))
    assert problem(path).splitlines() == [
        f"{path}: 5 problems",
        "  line 2: is not valid JSON at column 2: expecting property name enclosed in double "
        "quotes",
        "  line 3: `id` is missing or null, must be a string that is not blank",
        '  line 3: `image` "/x" is absolute, must be relative to the image folder',
        '  line 4: id "a" was used before, on line 1; ids must be unique',
        "  line 5: is a list, a record is a JSON object",
    ]


def test_problems_beyond_twenty_are_counted(tmp_path: Path) -> None:
    path = write(tmp_path, *[sample(id=index, image="/x") for index in range(23)])
    with pytest.raises(ManifestError) as caught:
        read_manifest(path)
    lines = str(caught.value).splitlines()
    assert lines[0] == f"{path}: 23 problems"
    assert lines[-1] == "  and 3 more"
    assert len(lines) == 22
    assert len(caught.value.problems) == 20
    twin = copy.deepcopy(caught.value)  # as a process pool copies it
    assert (str(twin), twin.problems) == (str(caught.value), caught.value.problems)


def test_a_number_and_its_text_are_the_same_id(tmp_path: Path) -> None:
    assert 'id "1" was used before, on line 1' in problem(
        write(tmp_path, sample(id=1), sample(id="1"))
    )


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "holds no records"),
        (b" \n\n\t", "holds no records"),
        (b"\xef\xbb\xbf", "holds no records"),
        (b"[]", "holds no records"),
        (b"{}", "line 1: `id` is missing"),
        (b'{\n "id": "a",\n "image": "x"\n}', "line 1: is not valid JSON at column 2"),
        (b'{"data": [\n {"id": 1}\n]}', "one whole object per line"),
        (b'[{"id": "a"}', "is not valid JSON at column 13"),
        (b'[{"id": "a"},\n {"id" "b"}]', "is not valid JSON at line 2"),
        (b"[1]", "item 1: is a number, a record is a JSON object"),
        (b'"text"', "line 1: is text, a record"),
        (b"null\nnull", "line 2: is missing or null"),
        (b"\xff\xfe{\0}\0", "is UTF-16, a manifest is UTF-8"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "NUL byte"),
        (b'{"id": "\xe9"}', "line 1: is not UTF-8 at byte 9"),
        (b'[{"id": "\xe9"}]', "is not UTF-8 at byte 10"),
        (b"[" * 100_000, "is nested too deeply"),
        (b'{"a":' * 100_000, "line 1: is nested too deeply"),
        (b'{"id": ' + b"9" * 5000 + b"}", "exceeds the limit"),
        (b'{"id": NaN}', "is not valid JSON: the value NaN is no JSON number"),
        (b'{"id": -Infinity}', "the value -Infinity is no JSON number"),
    ],
)
def test_a_file_that_is_no_manifest_is_one_error(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "m.json"
    path.write_bytes(content)
    message = problem(path)
    assert message.startswith(f"{path}: ")
    assert said in message


@given(st.binary())
@IN_TMP
def test_no_bytes_raise_anything_but_a_manifest_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "m.json"
    path.write_bytes(content)
    problem(path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just("<image>"),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(
    st.fixed_dictionaries(
        {}, optional=dict.fromkeys(("id", "image", "conversations", "mask"), JSON)
    )
    | st.fixed_dictionaries(
        {
            "conversations": st.lists(
                st.fixed_dictionaries({}, optional={"from": JSON, "value": JSON})
            )
        }
    )
)
@IN_TMP
def test_no_json_raises_anything_but_a_manifest_error(tmp_path: Path, raw: Any) -> None:
    try:
        records = read_manifest(write(tmp_path, raw))
    except ManifestError:
        return
    assert len(records) == 1


def test_missing_files_and_folders_are_named(tmp_path: Path) -> None:
    assert problem(tmp_path / "no.jsonl").endswith("cannot be read: no such file or directory")
    assert problem(tmp_path).endswith("cannot be read: is a directory")


def test_iter_records_stops_at_the_first_problem(tmp_path: Path) -> None:
    path = write(tmp_path, sample(), sample(id=None), sample(image="/x"))
    records = iter_records(path)
    assert next(records).id == "a"
    with pytest.raises(ManifestError, match="line 2: `id` is missing"):
        next(records)


def test_iter_records_holds_one_line_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "long.jsonl"
    line = json.dumps(sample(report="x" * 10_000)) + "\n"
    path.write_text(line * 2000)  # 20 MB
    tracemalloc.start()
    assert sum(1 for _ in iter_records(path)) == 2000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2_000_000


def test_an_image_resolves_inside_its_root(tmp_path: Path) -> None:
    root = tmp_path / "images"
    (root / "sub").mkdir(parents=True)
    (root / "link").symlink_to(root / "sub")
    link = tmp_path / "elsewhere"
    link.symlink_to(root)
    assert resolve_image(root, "sub/a b.png") == root / "sub" / "a b.png"
    assert resolve_image(root, "link/a.png") == root / "sub" / "a.png"
    assert resolve_image(link, "./a.png") == root / "a.png"
    assert resolve_image(Path("/"), "etc/hosts") == Path("/etc/hosts")


@pytest.mark.parametrize(
    "relative",
    ["/etc/passwd", "../x", "a/../../x", "..", "", ".", "a\\..\\x", "C:/x", "C:x", "//host/x",
     "a\0", "\udc80", "file://x"],
)  # fmt: skip
def test_paths_that_leave_the_root_by_their_text_are_refused(tmp_path: Path, relative: str) -> None:
    with pytest.raises(ManifestError, match="`image`"):
        resolve_image(tmp_path, relative)


def test_links_that_leave_the_root_are_refused(tmp_path: Path) -> None:
    root = tmp_path / "images"
    root.mkdir()
    (tmp_path / "images-secret").mkdir()
    (root / "out").symlink_to(tmp_path)
    (root / "near").symlink_to(tmp_path / "images-secret")
    (root / "self").symlink_to(root)
    for relative in ("out/x.png", "near/x.png", "self"):
        with pytest.raises(ManifestError, match=r"leads out of .* through a link"):
            resolve_image(root, relative)
    (root / "loop").symlink_to(root / "loop")
    assert resolve_image(root, "loop/x").is_relative_to(root)  # reading it fails, later


@given(st.text())
@settings(deadline=None)
def test_a_resolved_path_is_always_inside(relative: str) -> None:
    root = Path("/nonexistent/images")
    with contextlib.suppress(ManifestError):
        assert resolve_image(root, relative).is_relative_to(root)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", "plain"),
        ("naïve ÷ 肺", "naïve ÷ 肺"),
        ("a\x1b[31mred", r"a\x1b[31mred"),
        ("line\nline\r", r"line\nline\r"),
        ("ü\ud800\u202e", r"ü\ud800\u202e"),
        ("x" * 121, "x" * 120 + "..."),
        ("x" * 120, "x" * 120),
    ],
)
def test_text_of_a_message_cannot_command_a_terminal(text: str, shown: str) -> None:
    assert shorten(text) == shown
    assert shorten(text).isprintable()
