"""Refuses every connection but to this machine; Python runs it at the start of a process whose PYTHONPATH has this folder.

Attempts are also written to the file that ``BWE_NETWORK_LOG`` names, because a caller may swallow the refusal.
"""

from __future__ import annotations

import contextlib
import importlib.machinery
import importlib.util
import ipaddress
import os
import socket
import sys
from typing import Any


class NetworkBlocked(ConnectionRefusedError):
    """A test, or what it tests, tried to reach another machine."""


def _is_here(host: Any) -> bool:
    text = host.decode("ascii", "replace") if isinstance(host, bytes) else host
    if not text or text in ("localhost", "ip6-localhost", socket.gethostname()):
        return True
    try:
        address = ipaddress.ip_address(str(text).partition("%")[0])
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified


def _refuse(what: str) -> None:
    log = os.environ.get("BWE_NETWORK_LOG")
    if log:
        with contextlib.suppress(OSError), open(log, "a", encoding="utf-8") as file:
            file.write(f"{what} by {sys.argv[:4]}\n")
    raise NetworkBlocked(f"tests reach no network: {what}")


def block() -> None:
    """Replace what opens connections in `socket`; calling it twice changes nothing."""
    if getattr(socket, "_bwe_blocked", False):
        return
    socket._bwe_blocked = True  # type: ignore[attr-defined]
    base = socket.socket

    def guarded(name: str, position: int) -> Any:
        original = getattr(base, name)

        def method(self: socket.socket, *args: Any) -> Any:
            address = args[position] if args else None
            if self.family in (socket.AF_INET, socket.AF_INET6) and isinstance(address, tuple) and not _is_here(address[0]):
                _refuse(f"{name} to {address[0]}:{address[1]}")
            return original(self, *args)

        return method

    for name, position in (("connect", 0), ("connect_ex", 0), ("sendto", -1)):
        setattr(base, name, guarded(name, position))
    for name in ("getaddrinfo", "gethostbyname", "gethostbyname_ex"):
        setattr(socket, name, _guarded_lookup(name, getattr(socket, name)))


def _guarded_lookup(name: str, original: Any) -> Any:
    def lookup(host: Any, *args: Any, **kwargs: Any) -> Any:
        numeric = False
        with contextlib.suppress(ValueError):
            numeric = bool(ipaddress.ip_address(str(host)))
        if not numeric and not _is_here(host):
            _refuse(f"{name} of {host!r}")
        return original(host, *args, **kwargs)

    return lookup


def _run_the_next_sitecustomize() -> None:
    """An environment may have one of its own, which this one stands in front of."""
    here = os.path.dirname(os.path.abspath(__file__))
    others = [entry for entry in sys.path if os.path.abspath(entry or os.curdir) != here]
    spec = importlib.machinery.PathFinder.find_spec("sitecustomize", others)
    if spec is not None and spec.loader is not None:
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


block()
if __name__ == "sitecustomize":
    _run_the_next_sitecustomize()
