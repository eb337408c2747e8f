"""``affectlens serve``: a study's model behind OpenAI's API, until it is interrupted."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable
from pathlib import Path

from affectlens.errors import Unavailable
from affectlens.serve.service import Limits, Service
from affectlens.startup import uncollected
from affectlens.use.monitor import Monitor
from affectlens.use.opened import Opened


def serve(
    study: Opened,
    *,
    host: str,
    port: int,
    limits: Limits,
    say: Callable[[str], object],
    monitor: Path | None = None,
) -> None:
    """Serve until interrupted.

    Args:
        study: what is served; its directions have to be computed.
        host: the address to listen at.
        port: 0 takes any free one.
        limits: what is taken on.
        say: prints one line.
        monitor: a card by which requests may have their answers watched.

    Raises:
        UserError: the extra is not installed, the address is not to be had, or the card is of something else; before
            the model is loaded.
    """
    try:
        import uvicorn

        from affectlens.serve.app import build
        from affectlens.serve.connections import settings
    except ImportError as error:
        raise Unavailable(f"{error.name} is not installed; run `pip install 'affectlens[serve]'`") from None
    study.folder("directions")
    watching = None if monitor is None else Monitor.load(monitor, study)
    with _listening(host, port) as listening:
        with uncollected():
            service = Service(study, limits, watching)
        address = f"[{host}]" if ":" in host else host
        local = _is_loopback(host)
        app = build(service, ["127.0.0.1", "localhost", "[::1]"] if local else ["*"])
        if not local:
            say(f"everybody who reaches {address} can use this model: there are no accounts and no encryption")
        say(f"{service.name} at http://{address}:{listening.getsockname()[1]}/, OpenAI's API below /v1; Ctrl-C ends it")
        try:
            uvicorn.Server(settings(app, log_level="warning")).run(sockets=[listening])
        except KeyboardInterrupt:  # how it is ended
            pass
        finally:
            service.close()


def _listening(host: str, port: int) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise Unavailable(
            f"--host {host} --port {port}: {reason}; choose another, or --port 0 for any free port"
        ) from None


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
