"""How a long job says how far it is."""

from collections.abc import Callable
from contextlib import AbstractContextManager

Stage = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]
"""Begins a stage of so many bytes, and gives what is told of every few more."""
