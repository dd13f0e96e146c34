"""Reads the retention policy's file, if there is one, once per call and before any change."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import msgspec

from session_manager.core.errors import Damaged, Refused, UsageError
from session_manager.files.versions import read_file
from session_manager.functions.context import Context
from session_manager.settings import Settings, kept_path

if TYPE_CHECKING:
    from session_manager.core.keeping import Kept
    from session_manager.core.policy import Pins, RetentionPolicy


def with_policy(context: Context) -> Context:
    """Returns the context with the policy in force and all pins.

    Raises UsageError (``bad_policy``), Damaged (``pins_damaged``), or, when their folder may not be read, Refused
    (``not_writable``).
    """
    policy = _read(context.settings)
    return msgspec.structs.replace(context, policy=policy, pins=_pins(context, policy), informed=True)


def _pins(context: Context, policy: RetentionPolicy | None) -> Pins | None:
    """Returns the policy's pins with those set one by one, and the recent restores."""
    pins = None if policy is None else policy.pins
    kept = read_kept(context.settings)
    if kept is not None:
        from session_manager.core.policy import Pins

        restored = kept.spared(context.clock(), context.settings.keep_days)
        pins = pins or Pins()
        pins = msgspec.structs.replace(pins, ids=pins.ids | kept.pins.keys(), restored=restored)
    return pins or None


def read_kept(settings: Settings) -> Kept | None:
    """Returns the records of ``pin_session`` and of restores; None when there are none. Raises as ``with_policy``."""
    path = kept_path(settings)
    try:
        data = read_file(path)[0]
    except (FileNotFoundError, NotADirectoryError):
        return None
    except PermissionError as error:
        from session_manager.files.atomic import explain

        raise explain(error, "look for pins in", path) from error
    except OSError as error:
        from session_manager.core.keeping import damaged

        raise damaged(path, error.strerror or str(error)) from error
    from session_manager.core.keeping import decode

    return decode(data, path)


def with_policy_to_read(context: Context) -> tuple[Context, dict[str, Any]]:
    """Does the same as ``with_policy`` for a function that only reads, but continues without an unusable policy.

    Also returns the document's members about that: ``{"policy_error"}``.
    """
    try:
        return with_policy(context), {}
    except (UsageError, Refused, Damaged) as error:
        return context, {"policy_error": error.message}


def policy_has_rules(settings: Settings) -> bool:
    """Returns whether a policy has removal rules, not only pins. Raises UsageError (``bad_policy``)."""
    policy = _read(settings)
    return policy is not None and policy.has_rules


def _read(settings: Settings) -> RetentionPolicy | None:
    path = settings.policy_path
    try:
        data = read_file(path)[0]
    except OSError as error:
        missing = isinstance(error, FileNotFoundError | NotADirectoryError) and not os.path.islink(path)
        if missing and not settings.policy_named:
            return None
        if isinstance(error, PermissionError) and not settings.policy_named:
            from session_manager.files.atomic import explain

            # There may be a policy file, with pins in it.
            raise explain(error, "look for the retention policy", path) from error
        hint = "; correct or unset ARIA_POLICY" if settings.policy_named else ""
        raise _unusable(path, f"it cannot be read ({error.strerror}){hint}") from error
    from session_manager.core.policy import parse_policy

    try:
        # Some editors begin a file with a byte order mark.
        return parse_policy(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise _unusable(path, "it is not UTF-8 text") from error
    except UsageError as error:
        raise _unusable(path, error.message) from error


def _unusable(path: str, what: str) -> UsageError:
    return UsageError(f"the retention policy {path} cannot be used: {what}", code="bad_policy", path=path)
