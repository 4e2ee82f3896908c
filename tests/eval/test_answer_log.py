import json
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medalign.eval.prediction_log import AnswerLog, identity_path
from medalign.eval.predictions import Answer, AnswersError, read_answers

MakeAnswer = Callable[..., Answer]
IDENTITY = {"model": "tiny", "decoder": "greedy", "seed": 0}


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """Let the disk be full past `size` bytes of any file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)


def test_answers_are_read_back_in_order(tmp_path: Path, answer: MakeAnswer) -> None:
    path = tmp_path / "new" / "p.jsonl"
    with AnswerLog.open(path, IDENTITY) as log:
        assert log.done == set()
        for id_ in "ab":
            log.append(answer(id_))
        assert log.done == {"a", "b"}
    assert read_answers(path) == [answer("a"), answer("b")]
    assert json.loads(identity_path(path).read_text()) == IDENTITY


def test_a_second_run_knows_what_is_done(tmp_path: Path, answer: MakeAnswer) -> None:
    path = tmp_path / "p.jsonl"
    with AnswerLog.open(path, IDENTITY) as log:
        log.append(answer("a"))
    with AnswerLog.open(path, IDENTITY) as log:
        assert log.done == {"a"}
        with pytest.raises(AnswersError, match="id 'a' is answered already"):
            log.append(answer("a"))
        log.append(answer("b"))
    assert [one.id for one in read_answers(path)] == ["a", "b"]


def test_an_answer_is_in_the_file_as_soon_as_append_returns(
    tmp_path: Path, answer: MakeAnswer
) -> None:
    path = tmp_path / "p.jsonl"
    with AnswerLog.open(path, IDENTITY, sync_seconds=1e9) as log:
        log.append(answer("a"))
        assert read_answers(path) == [answer("a")]


@settings(max_examples=60)
@given(cut=st.integers(0, 400))
def test_a_file_cut_at_any_byte_is_finished(
    tmp_path_factory: pytest.TempPathFactory, cut: int
) -> None:
    path = tmp_path_factory.mktemp("cut") / "p.jsonl"
    answers = [
        Answer(id=id_, prompt="?", text="\u00e9", answer="", decoder="d", seed=0, new_tokens=1)
        for id_ in "abc"
    ]
    with AnswerLog.open(path, IDENTITY) as log:
        for one in answers:
            log.append(one)
    whole = path.read_bytes()
    path.write_bytes(whole[:cut])
    with AnswerLog.open(path, IDENTITY) as log:
        assert len(log.done) == whole[:cut].count(b"\n")
        for one in answers:
            if one.id not in log.done:
                log.append(one)
    assert path.read_bytes() == whole


def test_a_killed_process_loses_no_answer(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    code = (
        "import os, pathlib, signal, sys\n"
        "from medalign.eval.prediction_log import AnswerLog\n"
        "from medalign.eval.predictions import Answer\n"
        "log = AnswerLog.open(pathlib.Path(sys.argv[1]), {'model': 'tiny'}, sync_seconds=1e9)\n"
        "for i in range(3):\n"
        "    log.append(Answer(id=str(i), prompt='', text='', answer='', decoder='d', seed=0,"
        " new_tokens=0))\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    assert done.returncode == -signal.SIGKILL
    with AnswerLog.open(path, {"model": "tiny"}) as log:
        assert log.done == {"0", "1", "2"}


def test_another_identity_is_refused_and_both_sides_named(
    tmp_path: Path, answer: MakeAnswer
) -> None:
    path = tmp_path / "p.jsonl"
    with AnswerLog.open(path, IDENTITY) as log:
        log.append(answer())
    before = path.read_bytes()
    with pytest.raises(
        AnswersError, match=r"another decoder 'greedy' \(now 'beam'\), seed 0 \(now"
    ):
        AnswerLog.open(path, {**IDENTITY, "decoder": "beam", "seed": 1})
    with pytest.raises(AnswersError, match=r"another adapter None \(now 'x'\)"):
        AnswerLog.open(path, {**IDENTITY, "adapter": "x"})
    assert path.read_bytes() == before


def test_an_identity_is_compared_as_json(tmp_path: Path, answer: MakeAnswer) -> None:
    path = tmp_path / "p.jsonl"
    with AnswerLog.open(path, {"stop": [1, 2]}) as log:
        log.append(answer())
    with AnswerLog.open(path, {"stop": (1, 2)}) as log:
        assert log.done == {"a"}


def test_a_start_without_answers_binds_nobody(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    AnswerLog.open(path, {"model": "mistyped"}).close()
    AnswerLog.open(path, IDENTITY).close()
    assert json.loads(identity_path(path).read_text()) == IDENTITY


def test_answers_of_unknown_origin_are_not_continued(tmp_path: Path, answer: MakeAnswer) -> None:
    path = tmp_path / "p.jsonl"
    path.write_bytes(answer().to_line())
    with pytest.raises(AnswersError, match=r"p\.jsonl\.meta\.json is missing"):
        AnswerLog.open(path, IDENTITY)
    identity_path(path).write_text("{")
    with pytest.raises(AnswersError, match=r"meta\.json: is no JSON object"):
        AnswerLog.open(path, IDENTITY)


def test_a_damaged_line_in_the_middle_is_not_dropped(tmp_path: Path, answer: MakeAnswer) -> None:
    path = tmp_path / "p.jsonl"
    with AnswerLog.open(path, IDENTITY) as log:
        log.append(answer("a"))
        log.append(answer("b"))
    path.write_bytes(b"X" + path.read_bytes())
    with pytest.raises(AnswersError, match="line 1: is not JSON"):
        AnswerLog.open(path, IDENTITY)


def test_a_full_disk_keeps_whole_lines_only(tmp_path: Path, answer: MakeAnswer) -> None:
    path = tmp_path / "p.jsonl"
    size = len(answer("a").to_line())
    with AnswerLog.open(path, IDENTITY) as log:
        with file_size_limit(size + 10):
            log.append(answer("a"))
            with pytest.raises(
                AnswersError, match=r"cannot be written.*the answers so far are kept"
            ):
                log.append(answer("b"))
        assert log.done == {"a"}
        log.append(answer("c"))  # space again
    assert [one.id for one in read_answers(path)] == ["a", "c"]


def test_a_path_that_cannot_be_a_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(AnswersError, match="is a folder, answers need a file"):
        AnswerLog.open(tmp_path, IDENTITY)
    (tmp_path / "file").write_text("")
    with pytest.raises(AnswersError, match=r"cannot be written: (not a directory|file exists)"):
        AnswerLog.open(tmp_path / "file" / "p.jsonl", IDENTITY)


def test_one_process_writes_a_file_at_a_time(tmp_path: Path, answer: MakeAnswer) -> None:
    path = tmp_path / "p.jsonl"
    code = (
        "import pathlib, sys, time\n"
        "from medalign.eval.prediction_log import AnswerLog\n"
        "log = AnswerLog.open(pathlib.Path(sys.argv[1]), {'model': 'tiny'})\n"
        "print('open', flush=True)\n"
        "sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", code, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"open\n"
        with pytest.raises(AnswersError, match="another process writes it"):
            AnswerLog.open(path, {"model": "tiny"})
        other.kill()
    with AnswerLog.open(path, {"model": "tiny"}) as log:  # a lock dies with its process
        log.append(answer("a"))
