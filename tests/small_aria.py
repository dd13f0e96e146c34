"""A small aria-api over real HTTP, in a thread: the one that takes marks in bulk, or an older one.

It keeps what it was asked, and can be told to misbehave. ``prepared`` holds, in turn, how the next requests are
answered: a (status, headers, body) triple, "die" (breaks off in the middle of an answer), or a callable that is
called before the ordinary answer; ``always`` answers all other requests, or ``mood`` says how each is answered.
"""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

Prepared = tuple[int, dict[str, str], bytes] | str | Callable[[], None]


class Hanging:
    """An answer that waits: prepared, it says by ``asked`` that the request has come, and goes on when ``free``."""

    def __init__(self, patience_s: float = 60.0) -> None:
        self.asked, self.free = threading.Event(), threading.Event()
        self._patience_s = patience_s

    def __call__(self) -> None:
        self.asked.set()
        self.free.wait(self._patience_s)


class Request(NamedTuple):
    method: str
    path: str
    query: dict[str, str]
    body: Any
    headers: dict[str, str]


class SmallAria:
    """``older``: knows no bulk request and no filter. ``cap`` is the largest page, ``says`` what one tells of itself;
    without ``pages`` every page is the first; without ``erases`` it cannot erase. It takes no mark that ``refuses`` and
    none beyond ``most`` at once.
    """

    def __init__(self, *, older: bool = False, token: str | None = None, cap: int = 200) -> None:
        self.older, self.token, self.cap = older, token, cap
        self.says: tuple[str, ...] = ("total", "page", "limit", "pages")
        self.pages = True
        self.rows: list[dict[str, Any]] = []
        self.requests: list[Request] = []
        self.prepared: list[Prepared] = []
        self.always: Prepared | None = None
        self.erases = not older
        # What it says of itself to somebody without a token; "" for another program that sits at its address.
        self.service = "aria-api"
        self.mood: Callable[[], Prepared | None] | None = None
        self.refuses: Callable[[str], bool] = lambda session_id: False
        self.most: int | None = None
        self._lock = threading.Lock()
        self._server: ThreadingHTTPServer | None = None
        self.start()

    def start(self, port: int = 0) -> None:
        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 64

            def handle_error(self, request: Any, client_address: Any) -> None:
                """A client that has gone away is what some tests are about."""

        class Handler(_Handler):
            aria = self

        self._server = Server(("127.0.0.1", port), Handler)
        self.port = self._server.server_port
        self.url = f"http://127.0.0.1:{self.port}/api"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def add(self, session_id: str, agent_id: str = "main", status: str = "active", **columns: Any) -> str:
        """Adds a row and returns its id."""
        row_id = f"row-{len(self.rows)}"
        metadata = {"aria_session_id": session_id}
        self.rows.append({"id": row_id, "agent_id": agent_id, "status": status, "metadata": metadata, **columns})
        return row_id

    def add_all(self, session_ids: Iterable[str], agent_id: str = "main") -> None:
        for session_id in session_ids:
            self.add(session_id, agent_id)

    def status(self, session_id: str, agent_id: str = "main") -> str | None:
        for row in self.rows:
            if (row["agent_id"], row["metadata"].get("aria_session_id")) == (agent_id, session_id):
                return str(row["status"])
        return None

    def ended(self) -> set[str]:
        return {row["metadata"]["aria_session_id"] for row in self.rows if row["status"] == "ended"}

    def count(self) -> Counter[str]:
        """How many requests of each method there were."""
        return Counter(request.method for request in self.requests)

    def sent(self) -> list[tuple[str, str, str]]:
        """Every mark that arrived in bulk: (agent id, session id, status)."""
        return [
            (s["agent_id"], s["aria_session_id"], r.body["status"])
            for r in self.requests
            if r.method == "PATCH" and r.body and "sessions" in r.body
            for s in r.body["sessions"]
        ]

    def answer(self, request: Request) -> tuple[int, dict[str, str], bytes] | str:
        with self._lock:
            self.requests.append(request)
            prepared = self.prepared.pop(0) if self.prepared else self.mood() if self.mood else self.always
        if callable(prepared):
            prepared()
        elif prepared is not None:
            return prepared
        with self._lock:
            status, body = self._ordinary(request)
        service = {"X-Service": self.service} if request.path == "/healthz" and self.service else {}
        return status, {"Content-Type": "application/json", **service}, json.dumps(body).encode()

    def _ordinary(self, request: Request) -> tuple[int, Any]:
        if request.path == "/healthz":
            return 200, {"status": "ok"}
        if self.token is not None and request.headers.get("authorization") != f"Bearer {self.token}":
            return 401, {"detail": "not authenticated"}
        if not request.path.startswith("/api/sessions"):
            return 404, {"detail": "not found"}
        name = request.path.removeprefix("/api/sessions").removeprefix("/")
        if request.method == "GET" and not name:
            return 200, self._page(request.query)
        if request.method == "PATCH" and name:
            return self._patch_one(name, request.body)
        if (request.method, name) == ("POST", "erase") and self.erases:
            return self._erase_many(request.body)
        if request.method == "PATCH" and not self.older:
            return self._patch_many(request.body)
        return 405, {"detail": "method not allowed"}

    def _page(self, query: dict[str, str]) -> dict[str, Any]:
        rows = self.rows
        if not self.older and "aria_session_id" in query:
            rows = [r for r in rows if r["metadata"].get("aria_session_id") == query["aria_session_id"]]
        hidden = {"cron": "include_cron_events", "runtime": "include_runtime_events"}
        shown = {kind for kind, switch in hidden.items() if query.get(switch) == "true"}
        rows = [r for r in rows if r.get("session_type") not in hidden.keys() - shown]
        limit = min(int(query.get("limit", 25)), self.cap)
        page = int(query.get("page", 1)) if self.pages else 1
        told = {"total": len(rows), "page": page, "limit": limit, "pages": -(-len(rows) // limit)}
        items = rows[(page - 1) * limit : page * limit]
        return {"items": items, **{name: told[name] for name in self.says}}

    def _patch_one(self, row_id: str, body: Any) -> tuple[int, Any]:
        for row in self.rows:
            if str(row.get("id")) == row_id:
                if self.refuses(row["metadata"]["aria_session_id"]):
                    return 422, {"detail": "no"}
                row.update(body)
                return 200, {"updated": True}
        return 404, {"detail": "not found"}

    def _erase_many(self, body: Any) -> tuple[int, Any]:
        names = {(s["agent_id"], s["aria_session_id"]) for s in body["sessions"]}
        known = {(r["agent_id"], r["metadata"].get("aria_session_id")): r for r in self.rows}
        for name in names & known.keys():
            metadata = {"aria_session_id": name[1], "erased_at": "2026-02-15T18:00:00.000+00:00"}
            known[name] |= {"status": "ended", "metadata": metadata}
        missing = [{"agent_id": a, "aria_session_id": s} for a, s in sorted(names - known.keys())]
        return 200, {"erased": len(names & known.keys()), "missing": missing}

    def _patch_many(self, body: Any) -> tuple[int, Any]:
        names = [(s["agent_id"], s["aria_session_id"]) for s in body["sessions"]]
        if self.most is not None and len(names) > self.most:
            return 413, {"detail": "too many"}
        if any(self.refuses(session_id) for _, session_id in names):
            return 422, {"detail": "no"}
        known = {(r["agent_id"], r["metadata"].get("aria_session_id")): r for r in self.rows}
        for name in names:
            if name in known:
                known[name]["status"] = body["status"]
        missing = [{"agent_id": a, "aria_session_id": s} for a, s in names if (a, s) not in known]
        return 200, {"updated": len(names) - len(missing), "missing": missing}


class _Handler(BaseHTTPRequestHandler):
    aria: SmallAria
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1

    def _handle(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length)) if length else None
        parts = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        headers = {name.lower(): value for name, value in self.headers.items()}
        answer = self.aria.answer(Request(self.command, unquote(parts.path), query, body, headers))
        if isinstance(answer, str):
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b'{"items": [')
            self.close_connection = True
            return
        status, headers, data = answer
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_PATCH = do_POST = do_DELETE = _handle

    def log_message(self, *args: object) -> None:
        """Nothing of it belongs into a test's output."""
