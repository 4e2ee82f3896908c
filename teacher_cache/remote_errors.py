"""Errors of remote servers: which of them pass by themselves, and what to do about the others."""

import errno
from http import HTTPStatus

from .strict import TeacherCacheError

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


class CutShortError(Exception):
    """An answer was shorter than the file is."""


def status_of(error: BaseException) -> int | None:
    """Return the HTTP status behind an error, whichever library raised it."""
    for each in (error, error.__cause__):
        response = getattr(each, "response", None)  # botocore's
        if isinstance(response, dict):
            found = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
            code = response.get("Error", {}).get("Code")
            if found is None and str(code).isdecimal():
                found = int(code)
        else:
            found = getattr(each, "status", None) or getattr(each, "code", None)
        if isinstance(found, int):
            return int(found)
    return None


def is_absence(error: BaseException) -> bool:
    """Say whether an error means that there is no such file, and not that nobody could tell.

    fsspec's http raises FileNotFoundError for whatever happens while it asks for a size.
    """
    cause = error.__cause__
    known = cause is None or isinstance(cause, LookupError) or status_of(cause) in _GONE
    return isinstance(error, FileNotFoundError) and known


def is_passing(error: BaseException) -> bool:
    """Say whether the same request may well succeed in a moment."""
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
    told = error.__cause__ if isinstance(error, FileNotFoundError) and error.__cause__ else error
    text = " ".join(str(told).split()) or type(told).__name__
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
