"""The console blocks of the pages, played: each command is run, and must print what the page shows.

A line that begins with ``$`` is a command; what follows it is what it prints, standard error after standard output.
``…`` stands for anything in a line, and alone on a line for any number of lines. Run ids, times and process ids are
others each time: what the page calls one of them stands for the same one throughout a section.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

from service import cli
from support import ROOT, Skill

PAGES = ROOT / "references"
HOME = "/home/openclaw"
API = "http://localhost:8000"
_BLOCK = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_CHANGING = re.compile(
    r"(?P<run>[0-9a-f]{12}-[0-9a-f]{10})"
    r"|(?P<stamp>\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d\.\d{3}Z)"
    r"|(?P<time>\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?(?:\+00:00|Z))"
    r"|(?P<pid>(?<=pid )\d+)"
    r"|(?P<hash>[0-9a-f]{64})"
    r"|(?P<token>smt_[\w-]+)"
    r"|(?P<any>…)"
)
_LIKE = {
    "run": r"[0-9a-f]{12}-[0-9a-f]{10}",
    "stamp": r"[0-9T-]+\.[0-9]{3}Z",
    "time": r"[0-9T:.-]+(?:\+00:00|Z)",
    "pid": r"[0-9]+",
    "hash": r"[0-9a-f]{64}",
    "token": r"smt_[\w-]+",
}
_RUNNER = "python3 run_skill.py session_manager "


def sections(page: str) -> dict[str, str]:
    """The sections of a page, by their headings."""
    _, *parts = re.split(r"^## ", (PAGES / page).read_text(), flags=re.MULTILINE)
    return {part.partition("\n")[0]: part for part in parts}


def blocks(section: str) -> list[str]:
    """The console blocks of a section."""
    return _BLOCK.findall(section)


class Console:
    """One person at the console, in a home of their own, throughout one section of a page."""

    def __init__(self, home: Path, section: str, **env: str) -> None:
        self.home = home
        self.env = {"HOME": str(home), **env}
        self.agents = home / ".openclaw" / "agents"
        # What the page calls it -> what it is here.
        self.known: dict[str, str] = {HOME: str(home)}
        self._blocks = iter(blocks(section))

    def play(self) -> list[str]:
        """Runs the next block; returns what each of its commands printed."""
        return [self._step(command, shown) for command, shown in _steps(next(self._blocks))]

    def assert_all_played(self) -> None:
        assert list(self._blocks) == [], "a block of the section was not run"

    def _step(self, command: str, shown: str) -> str:
        code, printed = self._run(self._here(command))
        match = re.fullmatch(self._pattern(shown), printed)
        assert match, f"$ {command}\nthe page shows:\n{shown}\nit printed:\n{printed}"
        self.known.update({name: match[group] for group, name in self._groups.items()})
        # A page shows what fails with what it says.
        failed = any(sign in shown for sign in ("error: ", '"error":', "found a problem", "waits, see above"))
        assert (code != 0) == failed, (command, code, printed)
        return printed

    def _here(self, text: str) -> str:
        """A text of the page with the names that its parts have here."""
        for name in sorted(self.known, key=len, reverse=True):
            text = text.replace(name, self.known[name])
        return text

    def _pattern(self, shown: str) -> str:
        self._groups: dict[str, str] = {}
        lines = [r"(?:.*\n)*?" if line == "…" else self._line(line) + r" *\n" for line in shown.splitlines()]
        return "".join(lines)

    def _line(self, line: str) -> str:
        parts, at = [], 0
        for match in _CHANGING.finditer(line):
            parts.append(re.escape(self._here(line[at : match.start()])))
            at, name, kind = match.end(), match[0], match.lastgroup or ""
            if kind == "any":
                parts.append(".*?")
            elif name in self.known:
                parts.append(re.escape(self.known[name]))
            elif name in self._groups.values():
                parts.append(next(f"(?P={group})" for group, known in self._groups.items() if known == name))
            else:
                group = f"g{len(self._groups)}"
                self._groups[group] = name
                parts.append(f"(?P<{group}>{_LIKE[kind]})")
        return "".join((*parts, re.escape(self._here(line[at:]))))

    def _run(self, command: str) -> tuple[int, str]:
        if not re.search(r"[|>;&~$`]", re.sub(r"'[^']*'", "", command)):
            words = shlex.split(command)
            env = dict(self.env)
            while "=" in words[0]:
                name, _, env[name] = words.pop(0).partition("=")
            if words[0] == "session-manager":
                done = cli(*words[1:], **env)
                return done.returncode, done.stdout + done.stderr
            if command.endswith(shlex.join(words)) and words[:3] == shlex.split(_RUNNER):
                answer = Skill(self.agents, **{**env, "ARIA_AGENTS_DIR": None})(words[3], *words[4:])
                return answer.exit_code, answer.stdout.decode() + answer.stderr
        return self._shell(command)

    def _shell(self, command: str) -> tuple[int, str]:
        programs = self.home / "bin"
        programs.mkdir(exist_ok=True)
        module = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from session_manager.faces.cli import main; main()"
        for name, arguments in (("python3", [sys.executable]), ("session-manager", [sys.executable, "-c", module])):
            program = programs / name
            program.write_text(f'#!/bin/sh\nexec {shlex.join(arguments)} "$@"\n')
            program.chmod(0o755)
        path = f"{programs}{os.pathsep}{os.environ['PATH']}"
        done = subprocess.run(
            ["sh", "-c", command.replace("run_skill.py", str(ROOT / "run_skill.py"))],
            cwd=self.home,
            env={**os.environ, **self.env, "PATH": path},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=120,
            check=False,
        )
        return done.returncode, done.stdout


def _steps(block: str) -> list[tuple[str, str]]:
    """The commands of a block, each with what the page shows of its output."""
    _, *parts = re.split(r"^\$ ", block, flags=re.MULTILINE)
    steps = []
    for part in parts:
        command, _, shown = part.partition("\n")
        while command.endswith("\\"):
            more, _, shown = shown.partition("\n")
            command = command[:-1] + more.lstrip(" >")
        steps.append((command, shown))
    return steps
