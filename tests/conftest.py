"""Fixtures that more than one folder of tests uses."""

import contextlib
import hashlib
import io
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import replace
from functools import partial
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from threading import Lock, Thread
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import settings

from medalign.cli import main
from medalign.runtime.libraries import ADVICE
from medalign.teacher_cache.schema import CacheCard, ExpertCard, Failure, PatchGrid, Plan
from medalign.teacher_cache.seal import seal
from medalign.teacher_cache.writer import TeacherCacheWriter

# Workers share the cores. Threads of several OpenMP pools wait busily for each other.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# Time limits belong to benchmarks; a loaded machine must not fail a law.
settings.register_profile("medalign", deadline=None)
settings.load_profile("medalign")

# A job in the background or under `nohup` ignores signals, and so would every program it starts.
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


_warned: dict[str, list[str]] = {}  # first line of each warning -> the tests that gave it


def pytest_addoption(parser: pytest.Parser) -> None:
    """Warnings fail the run that this option is given to, once each; `.ci/run` gives it."""
    parser.addoption(
        "--fail-on-warnings",
        action="store_true",
        help="exit with 1 if any test warned; every distinct warning is listed once",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_warning_recorded(warning_message: Any, nodeid: str) -> None:
    """Gather tests by warning, so that a library's change is one line and not sixty."""
    text = str(warning_message.message).strip().partition("\n")[0]
    kind = f"{warning_message.category.__name__}: {text}"
    _warned.setdefault(kind, []).append(nodeid or "collection")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, Any]:
    """Skip what fails for a library that changed: `test_libraries.py` fails for it, once."""
    report = yield
    if report.failed and ADVICE in report.longreprtext and item.path.stem != "test_libraries":
        report.outcome = "skipped"
        reason = f"Skipped: a library changed, see test_libraries.py; {report.longreprtext[-300:]}"
        report.longrepr = (str(item.path), 0, reason)
    return report


def pytest_sessionfinish(session: pytest.Session) -> None:
    controller = not hasattr(session.config, "workerinput")
    if controller and _warned and session.config.getoption("--fail-on-warnings"):
        session.exitstatus = session.exitstatus or pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if not config.getoption("--fail-on-warnings"):
        return
    for kind, tests in sorted(_warned.items()):
        first = f"{len(tests)} tests, first {tests[0]}"
        terminalreporter.write_line(f"FAILED (warning) {kind} ({first})", red=True)


def _card(grid: PatchGrid, width: int, shard_rows: int) -> CacheCard:
    expert = ExpertCard(
        name="synthetic",
        architecture="none",
        weights_sha256=hashlib.sha256(b"synthetic").hexdigest(),
        features="last",
        grid=grid,
        width=width,
        image_size=14 * grid.rows,
        normalise_before_interpolation=True,
        licence="CC0-1.0",
    )
    return CacheCard(
        expert=expert,
        grid=grid,
        geometry="pad",
        mode="aligned",
        fill=(122, 116, 104),
        alpha="black",
        dtype="float32",
        interpolation="bilinear, align_corners=False",
        codec="fp16",
        shard_rows=shard_rows,
        versions={"medalign": "0"},
    )


def _rows(card: CacheCard, rows: range, seed: int) -> dict[str, npt.NDArray[Any]]:
    """Unit rows and softmax attention; a row's values depend on its number and the seed only."""
    features, attention = [], []
    for row in rows:
        rng = np.random.default_rng([seed, row])
        patches = rng.standard_normal((card.grid.size, card.expert.width))
        features.append(patches / np.linalg.norm(patches, axis=-1, keepdims=True))
        scores = np.exp(rng.standard_normal(card.grid.size))
        attention.append(scores / scores.sum())
    return {
        "features": np.stack(features).astype(np.float16),
        "attention": np.stack(attention).astype(np.float32),
        "valid": np.ones((len(rows), card.grid.size), np.bool_),
        "source_size": np.array([[100 + row, 200] for row in rows], np.int32),
    }


@pytest.fixture(scope="session")
def synthetic_card() -> Callable[..., CacheCard]:
    """Make a card: `synthetic_card(grid="4x4", width=8, shard_rows=4, geometry="crop", ...)`."""

    def make(grid: str = "4x4", width: int = 8, shard_rows: int = 4, **changes: Any) -> CacheCard:
        return replace(_card(PatchGrid.parse(grid), width, shard_rows), **changes)

    return make


@pytest.fixture(scope="session")
def synthetic_rows() -> Callable[..., dict[str, npt.NDArray[Any]]]:
    """Make what `write` takes: `synthetic_rows(card, range(4, 8), seed=0)`."""

    def make(card: CacheCard, rows: range, seed: int = 0) -> dict[str, npt.NDArray[Any]]:
        return _rows(card, rows, seed)

    return make


@pytest.fixture
def synthetic_store(
    tmp_path: Path, stores_below: Callable[[Path], Callable[..., Path]]
) -> Callable[..., Path]:
    """`stores_below` this test's own folder."""
    return stores_below(tmp_path)


@pytest.fixture(scope="session")
def stores_below(
    synthetic_card: Callable[..., CacheCard],
) -> Callable[[Path], Callable[..., Path]]:
    """Make sealed stores below a folder, without any expert, and return their paths.

    `stores_below(folder)(rows=6, grid="4x4", width=8, paths=None, content=None, sealed=True,
    name="cache", seed=0, failures=None, unreadable=(), **card)`: `paths` and `content` (SHA-256,
    hex) hold one entry per row, `failures` maps rows to reasons, `unreadable` lists paths without
    a row, and `card` changes fields of the card (`shard_rows`, `geometry`, `mode`, ...).
    """

    def make(
        folder: Path,
        rows: int = 6,
        grid: str = "4x4",
        width: int = 8,
        paths: Sequence[str] | None = None,
        *,
        content: Sequence[str] | None = None,
        sealed: bool = True,
        name: str = "cache",
        seed: int = 0,
        failures: dict[int, str] | None = None,
        unreadable: Sequence[str] = (),
        **card: Any,
    ) -> Path:
        made = synthetic_card(grid, width, **card)
        named = paths or [f"images/{row}.png" for row in range(rows)]
        digests = content or [hashlib.sha256(repr(path).encode()).hexdigest() for path in named]
        plan = Plan(
            content=tuple(digests),
            paths=dict(zip(named, range(rows), strict=True)),
            failures=tuple(Failure(path, "not an image") for path in unreadable),
        )
        writer = TeacherCacheWriter.begin(folder / name, made, plan)
        for shard in writer.pending():
            span = writer.rows_of(shard)
            lost = {row: why for row, why in (failures or {}).items() if row in span}
            writer.write(shard, **_rows(made, span, seed), failures=lost)
        if sealed:
            seal(folder / name)
        return folder / name

    return lambda folder: partial(make, folder)


@pytest.fixture(scope="session")
def medalign() -> Callable[..., str]:
    """Run the command line in this process, which has the heavy imports behind it.

    `medalign("cache", "seal", store)` returns what was printed; `code=2` expects that exit code,
    and gives stderr alone, as input that is wrong must be explained there.
    """

    def run(*words: str | Path, code: int = 0) -> str:
        out, err, found = io.StringIO(), io.StringIO(), 0
        before, sys.argv = sys.argv, ["medalign", *map(str, words)]
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                main()
        except SystemExit as end:
            found = end.code if isinstance(end.code, int) else int(bool(end.code))
        finally:
            sys.argv = before
        assert found == code, f"{words}\n{out.getvalue()}\n{err.getvalue()}"
        return err.getvalue() if code == 2 else out.getvalue() + err.getvalue()

    return run


@pytest.fixture(scope="session")
def originals() -> ModuleType:
    """Makers of small original checkpoints: `originals.make_llava_med(folder)` and others."""
    path = Path(__file__).parent / "trainer" / "convert" / "original.py"
    spec = spec_from_file_location("original_checkpoints", path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


class CuttingProxy:
    """Stands before a server and cuts every so many answers off in the middle.

    Attributes:
        port: where it listens.
        every: which answers are cut; 0 cuts none.
        cut: how many were.
    """

    def __init__(self, server: int) -> None:
        self._server = server
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._lock, self._answers = Lock(), 0
        self.port = self._listener.getsockname()[1]
        self.every = self.cut = 0
        Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self._server))
            Thread(target=self._asks, args=(client, server), daemon=True).start()
            Thread(target=self._answers_to, args=(client, server), daemon=True).start()

    def _asks(self, client: socket.socket, server: socket.socket) -> None:
        self._pump(client, server, lambda data: (data, True))

    def _answers_to(self, client: socket.socket, server: socket.socket) -> None:
        self._pump(server, client, self._perhaps_cut)

    def _perhaps_cut(self, data: bytes) -> tuple[bytes, bool]:
        if not data.startswith(b"HTTP/"):
            return data, True
        with self._lock:
            self._answers += 1
            if not self.every or self._answers % self.every:
                return data, True
            self.cut += 1
        return data[: len(data) * 2 // 3], False

    def _pump(
        self,
        source: socket.socket,
        sink: socket.socket,
        passed: Callable[[bytes], tuple[bytes, bool]],
    ) -> None:
        whole = True
        try:
            while whole and (data := source.recv(2**16)):
                data, whole = passed(data)
                sink.sendall(data)
            if not whole:  # a reset, as when a machine on the way goes down
                sink.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        except OSError:
            pass  # the other direction was closed
        for end in (source, sink):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue
            finally:
                end.close()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(scope="session")
def s3_server() -> Iterator[int]:
    """Port of an S3 server on this machine, as moto has it."""
    missing = [name for name in ("moto", "flask", "s3fs") if find_spec(name) is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}: pip install -e '.[test-s3]'")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    quiet = subprocess.DEVNULL
    with subprocess.Popen(command, stdout=quiet, stderr=quiet) as process:
        deadline = time.monotonic() + 60
        while not _listens(port):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield port
        process.terminate()


@pytest.fixture
def proxy(s3_server: int) -> Iterator[CuttingProxy]:
    """A proxy before the S3 server; set `every` to make it cut answers."""
    made = CuttingProxy(s3_server)
    yield made
    made.close()


@pytest.fixture
def bucket(
    proxy: CuttingProxy, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> str:
    """URL of a new bucket, reached through the proxy; child processes reach it too."""
    import s3fs

    environment = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{proxy.port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    name = hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:20]
    s3fs.S3FileSystem(skip_instance_cache=True).mkdir(name)
    return f"s3://{name}"
