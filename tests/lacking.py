"""File systems that cannot do everything, as this process sees them: some system calls fail as they do there."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Callable, Collection, Iterator
from typing import Any
from unittest import mock

from session_manager.files import atomic

EXCHANGE, LINKS, FLOCK, FSYNC, MODES = ALL = ("exchange", "hard_links", "flock", "fsync", "modes")
# Nor can they rename without overwriting.
EXCLUSIVELY = "exclusively"


def _failing(number: int) -> Callable[..., Any]:
    def fail(*args: Any, **keywords: Any) -> None:
        raise OSError(number, os.strerror(number))

    return fail


def _rename(without: Collection[str]) -> Callable[..., bool]:
    real = atomic._renameat2

    def renameat2(source: str, target: str, flags: int, *rest: Any) -> bool:
        lack = EXCHANGE if flags == atomic._EXCHANGE else EXCLUSIVELY
        return False if lack in without else real(source, target, flags, *rest)

    return renameat2


@contextlib.contextmanager
def lacking(without: Collection[str], **errors: int) -> Iterator[None]:
    """Takes abilities away; ``errors`` say what is answered instead of the usual error: links=errno.EOPNOTSUPP."""
    with contextlib.ExitStack() as stack:

        def change(owner: Any, name: str, new: Any) -> None:
            stack.enter_context(mock.patch.object(owner, name, new))

        if EXCHANGE in without or EXCLUSIVELY in without:
            change(atomic, "_renameat2", _rename(without))
        if LINKS in without:
            change(os, "link", _failing(errors.get("links", errno.EPERM)))
        if FLOCK in without:
            change(fcntl, "flock", _failing(errors.get("flock", errno.ENOLCK)))
        if FSYNC in without:
            change(os, "fsync", _failing(errors.get("fsync", errno.EINVAL)))
        if MODES in without:
            change(os, "fchmod", _failing(errors.get("modes", errno.EPERM)))
            change(os, "chmod", _failing(errors.get("modes", errno.EPERM)))
        yield
