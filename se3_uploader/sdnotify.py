"""What systemd wants to hear from a ``Type=notify`` service: sd_notify(3) without a dependency.

Nothing here does anything unless systemd started us, and nothing here raises: a service manager
that does not listen is no reason to stop uploading.
"""

from __future__ import annotations

import os
import socket
import time
from typing import List, Optional


def ready(status: str = "") -> None:
    """Say that the start, or a reload, is complete; status as in :func:`status`."""
    _send("READY=1", *_status(status))


def status(text: str) -> None:
    """Set the line for people in ``systemctl status``."""
    _send(*_status(text))


def reloading() -> None:
    """Say that the configuration is being read again; ends with :func:`ready`."""
    _send("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")


def stopping() -> None:
    """Say that a clean stop has begun."""
    _send("STOPPING=1")


def watchdog() -> None:
    """Say that the engine made progress; silent for WatchdogSec=, it is killed and restarted."""
    _send("WATCHDOG=1")


def watchdog_interval() -> Optional[float]:
    """Seconds between two calls of :func:`watchdog`: half of WatchdogSec=, None where none is set.

    sd_watchdog_enabled(3): WATCHDOG_USEC holds WatchdogSec=, meant for process WATCHDOG_PID alone.
    """
    try:
        if int(os.environ.get("WATCHDOG_PID", os.getpid())) != os.getpid():
            return None
        microseconds = int(os.environ["WATCHDOG_USEC"])
    except (KeyError, ValueError):
        return None
    return microseconds / 2e6 if microseconds > 0 else None


def _status(text: str) -> List[str]:
    line = " ".join(text.split())
    return [f"STATUS={line}"] if line else []


def _send(*assignments: str) -> None:
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")) or not assignments:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    message = "\n".join(assignments).encode("utf-8", "replace")
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
            # A manager that does not read its queue must not hold up the engine.
            channel.settimeout(1)
            channel.sendto(message, address)
    except (OSError, ValueError):
        pass
