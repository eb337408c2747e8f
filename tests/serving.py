"""A server of the test's own, for tests of the API and of the live page."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def serving(service) -> Iterator[str]:
    """The address at which a service answers."""
    import uvicorn
    from affectlens.serve.app import build
    from affectlens.serve.connections import settings

    config = settings(build(service), log_level="error")
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(10)
