"""A store behind a URL: s3://, gs://, memory:// and, read-only, http:// and https://.

Networks drop connections and servers are busy at times: such requests, and those whose answer is
too short, are repeated for some seconds, and their answers never become data. What repeating
cannot mend ends at once, in one line that says what to do.
"""

import errno
import os
import random
import time
from collections.abc import Callable, Iterator
from http import HTTPStatus
from typing import Any, TypeVar

import fsspec

from .untrusted import DamagedError, TeacherCacheError

_TRY_AGAIN = {
    HTTPStatus.REQUEST_TIMEOUT,
    HTTPStatus.CONFLICT,  # two conditional writes at once
    HTTPStatus.TOO_EARLY,
    HTTPStatus.TOO_MANY_REQUESTS,
}
_GONE = (HTTPStatus.NOT_FOUND, HTTPStatus.GONE)
_REFUSED = (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)
_WRONG_REQUEST = (errno.EINVAL, errno.EPERM, errno.ENOSYS, errno.ENAMETOOLONG, errno.EMSGSIZE)
_CREDENTIALS = ("NoCredentialsError", "PartialCredentialsError", "DefaultCredentialsError")
_PACKAGES = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs", "http": "http", "https": "http"}
_WAITS = (0.1, 0.4, 1.6, 6.4)  # seconds between attempts; libraries below try again themselves

Result = TypeVar("Result")


class CutShortError(Exception):
    """An answer was shorter than the file is."""


def status_of(error: BaseException) -> int | None:
    """Return the HTTP status behind an error, whichever library raised it."""
    for raised in (error, error.__cause__):
        response = getattr(raised, "response", None)  # botocore's
        if isinstance(response, dict):
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
            code = response.get("Error", {}).get("Code")
            if status is None and str(code).isdecimal():
                status = int(code)
        else:
            status = getattr(raised, "status", None) or getattr(raised, "code", None)
        if isinstance(status, int):
            return int(status)
    return None


def is_absence(error: BaseException) -> bool:
    """Return whether an error means that there is no such file, and not that nobody could tell.

    fsspec's http raises FileNotFoundError for whatever happens while it asks for a size.
    """
    cause = error.__cause__
    known = cause is None or isinstance(cause, LookupError) or status_of(cause) in _GONE
    return isinstance(error, FileNotFoundError) and known


def is_passing(error: BaseException) -> bool:
    """Return whether the same request may well succeed in a moment."""
    if isinstance(error, TeacherCacheError | PermissionError | FileExistsError):
        return False
    status = status_of(error)
    if isinstance(error, FileNotFoundError):
        return not is_absence(error) and error.__cause__ is not None and is_passing(error.__cause__)
    if status is not None and status >= HTTPStatus.BAD_REQUEST:
        return status >= HTTPStatus.INTERNAL_SERVER_ERROR or status in _TRY_AGAIN
    if type(error).__name__ in _CREDENTIALS or isinstance(error, ImportError | ValueError):
        return False
    return not (isinstance(error, OSError) and error.errno in _WRONG_REQUEST)


def explained(error: BaseException, url: str, doing: str) -> TeacherCacheError:
    """Return one line for a user: what failed, and what mends it."""
    cause = error.__cause__ if isinstance(error, FileNotFoundError) and error.__cause__ else error
    text = " ".join(str(cause).split()) or type(cause).__name__
    protocol = url.split("://", 1)[0]
    if isinstance(error, ImportError):
        extra = _PACKAGES.get(protocol)
        way_out = f"pip install 'medalign[{extra}]'" if extra else "install what it names"
    elif type(error).__name__ in _CREDENTIALS:
        way_out = (
            "give credentials as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or as AWS_PROFILE; "
            "FSSPEC_S3_ANON=true reads a public bucket"
        )
    elif isinstance(error, PermissionError) or status_of(error) in _REFUSED:
        way_out = "access is refused: check the credentials, and what they may read and write"
    elif is_passing(error):
        way_out = "it was tried several times: check the network and the server, then run it again"
    else:
        way_out = "check the URL and the endpoint (AWS_ENDPOINT_URL for servers other than AWS)"
    return TeacherCacheError(f"{url}: {doing} failed: {text}; {way_out}")


class RemoteStorage:
    """Files below a URL, through fsspec; picklable, and a forked child connects by itself.

    Credentials and endpoints are found as fsspec's users expect: `AWS_ACCESS_KEY_ID`,
    `AWS_PROFILE`, `AWS_ENDPOINT_URL`, `GOOGLE_APPLICATION_CREDENTIALS`, `FSSPEC_S3_...`, or
    fsspec's configuration files. Every method ends in a `TeacherCacheError` where access is
    refused or the server stays away.

    Attributes:
        url: without a slash at its end.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self._opened: dict[int, tuple[Any, str]] = {}

    def __str__(self) -> str:
        return self.url

    def __getstate__(self) -> dict[str, object]:
        return {"url": self.url, "_opened": {}}

    def read(self, name: str, limit: int) -> bytes:
        """Return the file `name`, by one request."""
        data = self._persist(f"reading {name}", lambda: self._range(name, 0, limit + 1))
        if len(data) > limit:
            raise DamagedError(f"{self}/{name} is longer than the {limit} bytes it may have")
        return data

    def read_into(self, name: str, start: int, buffer: memoryview) -> None:
        """Fill `buffer` with the bytes of `name` from `start` on, by one request."""
        stop = start + len(buffer)
        data = self._persist(f"reading {name}", lambda: self._whole_range(name, start, stop))
        if len(data) > len(buffer):
            raise TeacherCacheError(
                f"{self}: the server sends whole files in answer to a range; copy the store to a "
                "folder, or to a server that honours the header Range"
            )
        buffer[:] = data

    def size(self, name: str) -> int | None:
        """Return the size of a file in bytes, None when there is no such file."""
        return self._persist(f"looking for {name}", lambda: self._size(name))

    def write(self, name: str, data: bytes) -> None:
        """Put `data` at `name`: object stores show an object once all of it arrived."""
        self._put(name, lambda fs, path: fs.pipe_file(path, data))

    def publish(self, name: str, data: bytes) -> bool:
        """Put `data` at `name` unless something is there already; say whether it was put.

        Where the server knows `If-None-Match`, of two that publish at once only one does. After a
        dropped connection it may have been our own first attempt that was there already.
        """
        if self.size(name) is not None:
            return False
        try:
            self._put(name, lambda fs, path: _create(fs, path, data))
        except FileExistsError:
            return False
        return True

    def delete(self, name: str) -> None:
        """Delete a file; one that is absent is fine."""

        def call() -> None:
            fs, path = self._at(name)
            try:
                fs.rm_file(path)
            except FileNotFoundError:
                return

        self._refuse_to_write()
        self._persist(f"deleting {name}", call)

    def files(self, folder: str = "") -> Iterator[tuple[str, int]]:
        """Yield name and size of every file below `folder`, at any depth.

        Raises:
            TeacherCacheError: a web server does not say what it has.
        """
        if self._read_only:
            raise TeacherCacheError(
                f"{self}: a web server does not list its files, so it serves rows and nothing "
                "else; copy the store to a folder or an object store"
            )

        def call() -> dict[str, dict[str, Any]]:
            fs, path = self._at(folder)
            entries: dict[str, dict[str, Any]] = fs.find(path, detail=True)
            return entries

        try:
            entries = self._persist("listing", call)
        except FileNotFoundError:
            return
        _, root = self._at("")
        for path, entry in entries.items():
            yield path.removeprefix(root).lstrip("/"), int(entry["size"] or 0)

    def sweep(self) -> int:
        """Delete nothing: a killed writer leaves no part of an object."""
        return 0

    def exists(self) -> bool:
        """Return whether anything at all is there."""
        if self.size("zarr.json") is not None:  # a server of plain files may not know folders
            return True
        fs, path = self._at("")
        return bool(self._persist("looking for it", lambda: fs.exists(path)))

    @property
    def _read_only(self) -> bool:
        return self.url.startswith(("http://", "https://"))

    def _at(self, name: str) -> tuple[Any, str]:
        """Return this process's own file system, and the path of `name` in it."""
        if (opened := self._opened.get(os.getpid())) is None:
            # one that was opened before a fork stays in the dictionary: closing it here would
            # wait for a thread that only the parent has
            opened = self._opened[os.getpid()] = self._open()
        fs, root = opened
        return fs, f"{root}/{name}" if name else root

    def _open(self) -> tuple[Any, str]:
        try:
            fs, root = fsspec.url_to_fs(
                self.url, skip_instance_cache=True, use_listings_cache=False
            )
        except (ImportError, ValueError) as error:
            raise explained(error, self.url, "opening") from error
        return fs, root.rstrip("/")

    def _range(self, name: str, start: int, stop: int) -> bytes:
        fs, path = self._at(name)
        try:
            data: bytes = fs.cat_file(path, start=start, end=stop)
        except Exception as error:
            if status_of(error) == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                return b""
            raise
        return data

    def _whole_range(self, name: str, start: int, stop: int) -> bytes:
        data = self._range(name, start, stop)
        if len(data) < stop - start:
            size = self._size(name)
            if size is None:
                raise FileNotFoundError(f"{self}/{name} is missing")
            if size < stop:
                raise DamagedError(f"{self}/{name} ends at {size}, too early")
            raise CutShortError(f"only {len(data)} of {stop - start} bytes arrived")
        return data

    def _size(self, name: str) -> int | None:
        fs, path = self._at(name)
        try:
            entry = fs.info(path)
        except FileNotFoundError as error:
            if is_absence(error):
                return None
            raise
        return int(entry["size"]) if entry["type"] == "file" else None

    def _put(self, name: str, put: Callable[[Any, str], object]) -> None:
        self._refuse_to_write()
        try:
            self._persist(f"writing {name}", lambda: put(*self._at(name)))
        except FileNotFoundError as error:
            raise TeacherCacheError(
                f"{self}: cannot be written ({error}); make the bucket first"
            ) from error

    def _refuse_to_write(self) -> None:
        if self._read_only:
            raise TeacherCacheError(
                f"{self} can only be read; write to a folder or an object store (s3://, gs://)"
            )

    def _persist(self, doing: str, call: Callable[[], Result]) -> Result:
        """Try until it works, for some seconds where trying again can help."""
        waits = iter(_WAITS)
        while True:
            try:
                return call()
            except (FileExistsError, TeacherCacheError):
                raise
            except Exception as error:  # each library below raises types of its own
                if is_absence(error):
                    raise
                failure = error
            wait = next(waits, None) if is_passing(failure) else None
            if wait is None:
                raise explained(failure, self.url, doing) from failure
            time.sleep(wait * random.uniform(0.5, 1))  # not all workers at the same moment


def _create(fs: Any, path: str, data: bytes) -> None:
    try:
        fs.pipe_file(path, data, mode="create")
    except Exception as error:
        status = status_of(error)
        if status == HTTPStatus.PRECONDITION_FAILED:
            raise FileExistsError(path) from error
        unsupported = isinstance(error, NotImplementedError | TypeError)
        if unsupported or status == HTTPStatus.NOT_IMPLEMENTED:
            fs.pipe_file(path, data)  # no such condition here: the caller looked a moment ago
            return
        raise
