"""Calls a function as the JSON runner does, and ends a command with its exit code."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn

import typer

from session_manager.core.errors import (
    INTERRUPTED,
    PARTIAL_EXIT_CODE,
    Interrupted,
    SessionManagerError,
    UsageError,
)
from session_manager.faces.cli import prompt, words
from session_manager.faces.cli.progress import shown
from session_manager.faces.cli.screen import Screen, put, talk
from session_manager.faces.runner import call, encode
from session_manager.functions import load

Document = dict[str, Any]
Show = Callable[[Screen, Document], None]


def ask(name: str, **arguments: object) -> Document:
    """Calls a function without the arguments that are None, and returns its document. Raises SessionManagerError."""
    given = {argument: value for argument, value in arguments.items() if value is not None}
    try:
        with shown(name.replace("_", " ")):
            return call(load(name), given, os.environ)
    except KeyboardInterrupt:
        raise Interrupted(INTERRUPTED) from None


def answer(name: str, show: Show, *, as_json: bool = False, **arguments: object) -> None:
    """Calls a function and prints its document as JSON or as ``show`` formats it.

    Ends the command with the function's exit code after a failure or partial success.
    """
    try:
        document = ask(name, **arguments)
    except SessionManagerError as error:
        end_failed(error, as_json=as_json)
    if as_json:
        put(encode(document) + b"\n")
    else:
        show_now(show, document)
    if document.get("code") == "partial":
        _say_errors(document)
        raise typer.Exit(PARTIAL_EXIT_CODE)


def asked(name: str, show: Show, **arguments: object) -> Document:
    """Calls a function, shows its plan and returns it; agents that failed are named and do not end the command."""
    try:
        document = ask(name, **arguments)
    except SessionManagerError as error:
        end_failed(error)
    show_now(show, document)
    _say_errors(document)
    return document


def show_now(show: Show, document: Document) -> None:
    """Prints a document as ``show`` formats it."""
    screen = Screen()
    show(screen, document)
    _say_also(screen, document)
    try:
        put(screen.data())
    finally:
        # The command that undoes a removal is shown even if the removal itself could not be printed.
        for note in screen.notes:
            talk(note)


def _say_also(screen: Screen, document: Document) -> None:
    """Prints the notes that all functions' results share, if there are any."""
    for recovered in document.get("recovered", ()):
        if "found" in recovered:
            screen.note(f"a replaced index of {recovered['agentId']} was kept for comparison: {recovered['found']}")
            continue
        for verb in ("finished", "undone"):
            if recovered[verb]:
                done = f"{recovered['what']} of {counted(len(recovered[verb]), 'session')} in {recovered['agentId']}"
                screen.note(f"{verb} the interrupted run {recovered['run_id']}: {done}")
    if "reappeared" in document:
        again = counted(len(document["reappeared"]), "session")
        screen.note(f"removed again: {again} that the gateway had written back")
    for woken in document.get("woken", ()):
        whole = "complete" if woken["whole"] else "the next call joins its transcript with the archived part"
        screen.note(
            f"kept session {woken['id']} of {woken['agentId']}, which received a message during its removal ({whole})"
        )
    for path in document.get("left_alone", ()):
        screen.note(f"not moved, because it is outside its agent's folder or its name is not UTF-8: {path}")
    if "at_risk" in document:
        files = counted(document["at_risk"]["files"], "archived file")
        screen.note(
            f"{files} without a second copy, which some gateways delete after a day ({document['at_risk']['error']})"
        )
    for weaker in document.get("weaker", ()):
        screen.note(weaker["note"])
    if "clock_ahead" in document:
        screen.note(document["clock_ahead"]["note"])


def _say_errors(document: Document) -> None:
    for failure in document.get("errors", ()):
        where = " ".join(str(failure[name]) for name in ("agentId", "id") if failure[name])
        talk(f"error: {where}: {failure['error']}")


def end_failed(error: SessionManagerError, *, as_json: bool = False) -> NoReturn:
    """Ends the command with the error's code; reports the work that an interrupted run had completed."""
    if as_json:
        put(encode(error.document()) + b"\n")
    else:
        talk(f"error: {error.message}")
        for conflict in error.details.get("conflicts", ()):
            talk(f"  {conflict['agentId']} {conflict['id']}: {conflict['reason']}")
    if isinstance(error, Interrupted):
        _say_done(error.details)
    raise typer.Exit(error.exit_code)


def _say_done(details: Mapping[str, Any]) -> None:
    """Reports the work that an interrupted call had completed."""
    if "restored_count" in details:
        talk(
            f"{counted(details['restored_count'], 'session')} had been restored; run the same command again to continue"
        )
    elif "purged_count" in details:
        freed = words.size(details["bytes_freed"])
        talk(f"{counted(details['purged_count'], 'archive')} ({freed}) had been permanently deleted")
    elif details.get("pending") is not None:
        talk(f"{counted(details['pending'], 'status update')} for history still pending; run the same command again")
    elif "run_id" in details:
        run_id = details["run_id"]
        with contextlib.suppress(SessionManagerError):
            known = ask("list_deleted", run_id=run_id, limit=1)
            done = known["deleted_count"] - known.get("unfinished", 0)
            if done:
                talk(f"{counted(done, 'session')} had been removed; undo this with: session-manager undo {run_id}")


def needs_somebody(flags: str, *, as_json: bool) -> None:
    """Raises UsageError when there is no terminal to ask on, naming the flags that skip the question."""
    if as_json or not (sys.stdin is not None and sys.stdin.isatty() and sys.stderr.isatty()):
        why = "--json prints one document" if as_json else "there is no terminal to ask at"
        raise UsageError(f"{why}: give {flags}; nothing was changed", code="not_confirmed")


def confirmed(question: str) -> bool:
    """Asks on the terminal; no is the default. Ends the command when it is interrupted there."""
    with _unchanged_when_interrupted():
        if prompt.yes(question):
            return True
    talk("Nothing was changed.")
    return False


def typed(question: str) -> str:
    """Asks on the terminal for a word. Ends the command when it is interrupted there."""
    with _unchanged_when_interrupted():
        return prompt.line(question)


@contextlib.contextmanager
def _unchanged_when_interrupted() -> Iterator[None]:
    try:
        yield
    except (KeyboardInterrupt, EOFError):
        talk("")
        talk("Nothing was changed.")
        raise typer.Exit(Interrupted.exit_code) from None


def counted(number: int, noun: str) -> str:
    """Writes a number with its noun: 1 session, 2 sessions."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def say_history(screen: Screen, document: Document) -> None:
    """Adds a note about status updates that have not reached history yet."""
    pending = document.get("pg_pending")
    if pending:
        updates = counted(int(pending), "status update")
        why = document.get("pg_error", "aria-api could not be reached")
        screen.note(f"history: {updates} pending, to be delivered by a later call ({why})")


def say_run(screen: Screen, document: Document) -> None:
    """Adds the command that undoes the removal."""
    if document.get("run_id") is not None:
        screen.note(f"undo with: session-manager undo {document['run_id']}")
