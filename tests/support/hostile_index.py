"""An index on this machine that answers as a test wants, and notes who asked what."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Answer = Callable[["Handler"], None]


class Handler(BaseHTTPRequestHandler):
    """Hands each request to the test's answer."""

    server: HostileIndex

    def do_GET(self) -> None:
        """Note the request and answer it."""
        self.server.asked.append((self.path, self.headers.get("Authorization")))
        with contextlib.suppress(ConnectionError):
            self.server.answer(self)

    def reply(self, body: bytes = b"", code: int = 200, **headers: str | None) -> None:
        """An answer with these headers; of HTML, and of the length it has, unless they say otherwise or None."""
        said = {"Content-Type": "text/html", "Content-Length": str(len(body))}
        said |= {name.replace("_", "-"): value for name, value in headers.items()}  # type: ignore[dict-item]
        self.send_response(code)
        for name, value in said.items():
            if value is not None:
                self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def trickle(self, piece: bytes) -> None:
        """The same piece every few milliseconds, until the index is closed or nobody listens."""
        while not self.server.closing.wait(0.01):
            self.wfile.write(piece)
            self.wfile.flush()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


class HostileIndex(ThreadingHTTPServer):
    """The index; ``asked`` has the path and the Authorization header of every request."""

    daemon_threads = True

    def __init__(self, answer: Answer) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answer = answer
        self.asked: list[tuple[str, str | None]] = []
        self.closing = threading.Event()

    @property
    def address(self) -> str:
        """Its address, without a slash at the end."""
        return f"http://127.0.0.1:{self.server_port}"


@contextlib.contextmanager
def hostile_index(answer: Answer) -> Iterator[HostileIndex]:
    """An index that runs within the context."""
    with HostileIndex(answer) as index:
        thread = threading.Thread(target=lambda: index.serve_forever(poll_interval=0.01), daemon=True)
        thread.start()
        try:
            yield index
        finally:
            index.closing.set()
            index.shutdown()
