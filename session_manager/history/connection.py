"""One run's connection to aria-api: its time budget, its retries, and a clear sentence for each error.

Invariants:

- After the first failure that concerns the service as a whole no further request is made in this run.
- When the budget is used up, no request begins and no answer is read further.
- The token is sent to one origin only, which was named or has proved to be aria-api, and appears in no message.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import httpx
import msgspec

CONNECT_S = 2.0
CONCURRENCY = 8
MAX_ANSWER_BYTES = 64 * 1024 * 1024
_ATTEMPTS = 4
_BUSY = (429, 503)
_REDIRECTS = (301, 302, 303, 307, 308)
_MAX_REDIRECTS = 3
_LEAST_PAUSE_S = 0.1
_FIRST_PAUSE_S = 0.25

Document = TypeVar("Document")


class Unavailable(Exception):
    """aria-api could not be reached; the message is a sentence that says why and what to do."""


class Answer(msgspec.Struct):
    """One answer: HTTP status, body and headers."""

    status: int
    body: bytes
    headers: httpx.Headers


class Connection:
    """Sends requests to aria-api at ``url`` for at most ``budget_s`` seconds from the first request.

    ``reached`` is True once there was a connection: without one, nothing was received. ``doubtful`` is True if the last
    request failed but may have been carried out, at least in part. ``clock`` and ``sleep`` are in seconds and can be
    replaced. Safe to use from several threads. The constructor raises Unavailable if the URL, or the environment's
    settings of proxies and certificates, are invalid.
    """

    def __init__(
        self,
        url: str,
        token: str | None,
        budget_s: float,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.url = url
        self.budget_s = budget_s
        self.answered = threading.Event()
        self.reached = False
        self.doubtful = False
        self._clock = clock
        self._sleep = sleep
        self._deadline: float | None = None
        self._not_before = 0.0
        self._given_up: str | None = None
        self._lock = threading.Lock()
        try:
            self._client = _http_client(url)
        except (httpx.InvalidURL, ImportError, ValueError, OSError) as error:
            raise Unavailable(
                f"aria-api at {url} cannot be called ({_detail(error)}): check ARIA_API_URL and the proxy variables"
            ) from error
        self.authorize(token)

    def authorize(self, token: str | None) -> None:
        """Sends a token with each request from now on."""
        if token is not None:
            self._client.headers["Authorization"] = f"Bearer {token}"

    def close(self) -> None:
        """Closes all connections."""
        self._client.close()

    def remaining(self) -> float:
        """Returns the seconds left; the first call starts the clock. Raises Unavailable when none are left."""
        now = self._clock()
        with self._lock:
            if self._deadline is None:
                self._deadline = now + self.budget_s
            left = self._deadline - now
        if left <= 0:
            raise self.give_up(f"aria-api did not finish within {self.budget_s:g} s (ARIA_API_TIMEOUT)")
        return left

    def give_up(self, sentence: str) -> Unavailable:
        """Ends this run's requests to aria-api; returns the error to raise, with the first such sentence."""
        with self._lock:
            self._given_up = self._given_up or sentence
            return Unavailable(self._given_up)

    def request(
        self, method: str, path: str, params: Mapping[str, str | int] | None = None, body: object = None
    ) -> Answer:
        """Sends one request below the base URL and returns its answer, after waiting for a busy service.

        Raises Unavailable when the service cannot be reached, is too slow or stays busy, breaks off, wants another
        token, redirects elsewhere or fails (5xx).
        """
        content = None if body is None else msgspec.json.encode(body)
        url = self.url + path
        self.doubtful = False
        for attempt in range(_ATTEMPTS):
            self._pause()
            answer = self._follow(method, url, params, content)
            if answer.status not in _BUSY:
                break
            self._postpone(answer, attempt)
        status = answer.status
        if status == 401:
            raise self.give_up("aria-api refused the token (401): set ARIA_API_TOKEN to a valid token")
        if status == 403:
            better = "one that may do this (read, write; delete to erase)"
            raise self.give_up(f"aria-api refused {method} {path} (403): set ARIA_API_TOKEN to {better}")
        if status in _BUSY:
            raise self.give_up(f"aria-api stayed busy ({status}); the next call tries again")
        if status >= 500 and status != 501:
            raise self.give_up(f"aria-api failed ({status}) at {method} {path}; check its log")
        return answer

    def look(self, url: str, method: str = "GET", body: object = None) -> Answer:
        """Sends one request to the same origin and returns any answer, without waiting for a busy service.

        Raises Unavailable when the service cannot be reached, is too slow, breaks off or redirects elsewhere.
        """
        self._pause()
        return self._follow(method, url, None, None if body is None else msgspec.json.encode(body))

    def json(self, answer: Answer, kind: type[Document]) -> Document:
        """Decodes an answer. Raises Unavailable if it is not JSON of that kind."""
        try:
            return msgspec.json.decode(answer.body, type=kind)
        except (msgspec.DecodeError, ValueError, RecursionError) as error:
            raise self.unexpected() from error

    def unexpected(self) -> Unavailable:
        """Gives up on a service that does not answer as aria-api does; returns the error to raise."""
        return self.give_up(f"the server at {self.url} does not answer as aria-api does: check ARIA_API_URL")

    def _pause(self) -> None:
        """Waits until a busy service accepts requests again: all threads together, not each for itself."""
        with self._lock:
            given_up, wait = self._given_up, self._not_before - self._clock()
        if given_up is not None:
            raise Unavailable(given_up)
        if wait > 0:
            self._sleep(wait)
        self.remaining()

    def _postpone(self, answer: Answer, attempt: int) -> None:
        wait = _seconds(answer.headers.get("retry-after"))
        wait = _FIRST_PAUSE_S * 2**attempt if wait is None else max(wait, _LEAST_PAUSE_S)
        if wait >= self.remaining():
            raise self.give_up(f"aria-api is busy ({answer.status}) and asks to be called again in {wait:.0f} s")
        with self._lock:
            self._not_before = max(self._not_before, self._clock() + wait)

    def _follow(self, method: str, url: str, params: Mapping[str, str | int] | None, content: bytes | None) -> Answer:
        target = httpx.URL(url, params=params) if params else httpx.URL(url)
        for _ in range(_MAX_REDIRECTS):
            answer = self._once(method, target, content)
            if answer.status not in _REDIRECTS:
                return answer
            target = self._redirected(target, answer, method)
        raise self.give_up(f"aria-api at {self.url} redirects in a loop: check ARIA_API_URL")

    def _redirected(self, url: httpx.URL, answer: Answer, method: str) -> httpx.URL:
        try:
            target = url.join(answer.headers.get("location", ""))
        except httpx.InvalidURL as error:
            raise self.unexpected() from error
        same = (target.scheme, target.host, target.port) == (url.scheme, url.host, url.port)
        if not same:
            # The token is for the configured host alone, and no mark may be sent to another history.
            place = f"{target.scheme}://{target.host}"[:200]
            raise self.give_up(f"aria-api redirects to {place!r}, which is not followed: check ARIA_API_URL")
        if method != "GET" and answer.status not in (307, 308):
            raise self.unexpected()
        return target

    def _once(self, method: str, url: httpx.URL, content: bytes | None) -> Answer:
        left = self.remaining()
        try:
            with self._client.stream(
                method,
                url,
                content=content,
                headers={} if content is None else {"Content-Type": "application/json"},
                timeout=httpx.Timeout(left, connect=min(CONNECT_S, left)),
                extensions={"trace": self._trace},
            ) as response:
                self.answered.set()
                self.doubtful = response.is_success or (response.is_server_error and response.status_code != 501)
                return Answer(response.status_code, self._read(response), response.headers)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            sentence = f"aria-api cannot be reached at {self.url} ({_detail(error)}); is it running?"
            raise self.give_up(sentence) from error
        except httpx.TimeoutException as error:
            raise self.give_up(f"aria-api did not answer within {self.budget_s:g} s (ARIA_API_TIMEOUT)") from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            sentence = f"aria-api at {self.url} closed the connection ({_detail(error)}); the next call tries again"
            raise self.give_up(sentence) from error

    def _trace(self, event: str, info: Mapping[str, Any]) -> None:
        if event == "connection.connect_tcp.complete":
            self.reached = True
            self.answered.set()
        elif event == "http11.send_request_headers.started":
            self.doubtful = True

    def _read(self, response: httpx.Response) -> bytes:
        data = bytearray()
        for chunk in response.iter_bytes():
            data += chunk
            if len(data) > MAX_ANSWER_BYTES:
                raise self.give_up(f"aria-api's answer is larger than {MAX_ANSWER_BYTES >> 20} MB: check ARIA_API_URL")
            # Each chunk may arrive in time while the whole answer never ends.
            self.remaining()
        return bytes(data)


def _http_client(url: str) -> httpx.Client:
    parsed = httpx.URL(url)
    direct = _is_near(parsed.host)
    headers = {"Accept": "application/json", "Accept-Encoding": "identity", "User-Agent": "session_manager"}
    return httpx.Client(
        headers=headers,
        # Loading the trusted certificates takes longer than the whole call; plain HTTP needs none.
        verify=not direct or parsed.scheme != "http",
        trust_env=not direct,
        follow_redirects=False,
        limits=httpx.Limits(max_connections=CONCURRENCY),
    )


def _is_near(host: str) -> bool:
    """Returns True if a host needs no proxy: loopback, or a name without a dot (a container's neighbour)."""
    return host in ("::1", "0:0:0:0:0:0:0:1") or host.startswith("127.") or ("." not in host and ":" not in host)


def _seconds(text: str | None) -> float | None:
    """Reads Retry-After: seconds, or an HTTP date. Returns None for anything else."""
    if text is None:
        return None
    if text.strip().isdecimal():
        return float(text.strip()[:9])
    from email.utils import parsedate_to_datetime

    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None


def _detail(error: Exception) -> str:
    return (str(error) or type(error).__name__)[:200]
