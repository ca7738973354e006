"""An OpenAI-compatible endpoint on this machine, with a bill and with faults on demand."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple


class Reply(NamedTuple):
    """What to answer instead of facts."""

    status: int = 200
    content: str = ""
    headers: Mapping[str, str] = {}
    delay_seconds: float | None = None


class Endpoint(ThreadingHTTPServer):
    """Answers every call with facts, but for the replies that it was told to give first.

    Attributes:
        calls: the passage of each call that came, in order.
        keys: the Authorization header of each call.
        billed: tokens by passage, once for each call that was charged.
        faults: replies that the next calls get.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, latency_seconds: float) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.latency_seconds = latency_seconds
        self.lock = threading.Lock()
        self.calls: list[str] = []
        self.keys: list[str] = []
        self.billed: list[tuple[str, int]] = []
        self.faults: list[Reply] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    @property
    def tokens(self) -> int:
        """All that was charged."""
        return sum(tokens for _, tokens in self.billed)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of callers that were killed."""


class Handler(BaseHTTPRequestHandler):
    server: Endpoint

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        prompt = " ".join(message["content"] for message in body["messages"])
        passage = body["messages"][-1]["content"]
        words = passage.split()
        content = json.dumps({"summary": words[0], "keywords": words[:3], "figures": []})
        usage = {"prompt_tokens": len(prompt.split()), "completion_tokens": 7}
        with self.server.lock:
            self.server.calls.append(passage)
            self.server.keys.append(self.headers.get("Authorization", ""))
            fault = self.server.faults.pop(0) if self.server.faults else Reply(200, content)
            if fault.status == 200:
                self.server.billed.append((passage, sum(usage.values())))
        own = fault.delay_seconds
        time.sleep(self.server.latency_seconds if own is None else own)
        message = {"role": "assistant", "content": fault.content}
        answer = {"model": "m-2026", "choices": [{"message": message}], "usage": usage}
        data = json.dumps(answer) if fault.status == 200 else fault.content
        self.send_response(fault.status)
        for name, value in fault.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data.encode())))
        self.end_headers()
        self.wfile.write(data.encode())

    def log_message(self, *args: object) -> None:
        """Keep quiet."""


@contextmanager
def serving(latency_seconds: float = 0.01) -> Iterator[Endpoint]:
    with Endpoint(latency_seconds) as endpoint:
        thread = threading.Thread(target=endpoint.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield endpoint
        finally:
            endpoint.shutdown()
            thread.join()
