"""Tokens that the checkpoint's tokenizer had added to its vocabulary."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from tokenizers import AddedToken, Tokenizer

from .errors import ConvertError
from .json_file import read_object

_LIST: Final = "added_tokens.json"
_CONFIG: Final = "tokenizer_config.json"
_DECODER: Final = "added_tokens_decoder"


def add_tokens(source: Path, tokenizer: Tokenizer) -> tuple[Path, ...]:
    """Add them under the same ids, and return the files that listed them alone.

    Raises:
        ConvertError: a file is damaged, or a token would get another id.
    """
    added = source / _LIST
    used = (added,) if added.is_file() else ()
    listed = {**_of_list(added), **_of_decoder(source / _CONFIG)}
    for number, token in sorted(listed.items()):
        if tokenizer.token_to_id(token.content) is None:
            tokenizer.add_tokens([token])
        if (found := tokenizer.token_to_id(token.content)) != number:
            raise ConvertError(
                f"{source}: added token {token.content!r} should be id {number} and becomes "
                f"{found}; the tokenizer's files do not belong together"
            )
    return used


def _of_list(path: Path) -> dict[int, AddedToken]:
    found = {}
    for text, number in (read_object(path) if path.is_file() else {}).items():
        if isinstance(number, bool) or not isinstance(number, int):
            raise ConvertError(f"{path}: the id of {text!r} is {number!r}, expected a whole number")
        found[number] = AddedToken(text, normalized=False, special=True)
    return found


def _of_decoder(path: Path) -> dict[int, AddedToken]:
    tokens = (read_object(path) if path.is_file() else {}).get(_DECODER)
    if tokens is None:
        return {}
    if not isinstance(tokens, dict):
        raise ConvertError(f"{path}: {_DECODER} is {tokens!r}, expected an object of ids")
    found = {}
    for number, token in tokens.items():
        if not number.isdecimal():
            raise ConvertError(f"{path}: {_DECODER} has an id {number!r}, expected a whole number")
        content = token.get("content") if isinstance(token, Mapping) else None
        if not isinstance(content, str):
            raise ConvertError(
                f"{path}: {_DECODER}, id {number}: expected an object with text under 'content', "
                f"is {token!r}"
            )
        flags: dict[str, Any] = {
            key: bool(token.get(key)) for key in ("lstrip", "rstrip", "special")
        }
        found[int(number)] = AddedToken(content, normalized=False, **flags)
    return found
