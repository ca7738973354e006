"""Run moto's server with one request at a time.

    python moto_in_turn.py PORT

moto looks whether an object is there and then writes it, and its threads may meet between the
two: of ``If-None-Match: *`` from several clients, now and then two succeed. In S3 exactly one
does. In turn they are as in S3.
"""

from __future__ import annotations

import gc
import io
import sys
import threading
from collections.abc import Iterable
from typing import Any

from moto.moto_server.werkzeug_app import (
    MotoRequestHandler,
    create_backend_app,
)
from werkzeug.serving import run_simple

_turn = threading.Lock()


class InTurn:
    """A WSGI application whose requests wait for each other, but not for slow clients."""

    def __init__(self, app: Any) -> None:
        self._app = app

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        length = int(environ.get("CONTENT_LENGTH") or 0)
        if length:
            environ["wsgi.input"] = io.BytesIO(environ["wsgi.input"].read(length))
        with _turn:
            answer = self._app(environ, start_response)
            try:
                return list(answer)
            finally:
                if hasattr(answer, "close"):
                    answer.close()


class KeepsConnections(MotoRequestHandler):
    """Like S3, it keeps connections open; and it prints nothing."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        pass


if __name__ == "__main__":
    app = InTurn(create_backend_app("s3"))
    gc.freeze()
    run_simple("127.0.0.1", int(sys.argv[1]), app, threaded=True, request_handler=KeepsConnections)
