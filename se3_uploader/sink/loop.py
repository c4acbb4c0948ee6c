"""What a sink needs of the loop that the engine's thread waits in."""

from __future__ import annotations

from typing import Callable, Protocol

FOREVER = float("inf")
"""The deadline of what has none."""


class Timed(Protocol):
    """Something whose time comes while a loop waits."""

    @property
    def deadline(self) -> float:
        """When expire is to be called (monotonic seconds)."""

    def expire(self, now: float) -> None:
        """Do what is due at a monotonic second."""


class Loop(Protocol):
    """Waits for sockets, deadlines and other threads, and calls back in the thread that waits."""

    def watch_socket(self, handle: int, events: int, ready: Callable[[int], None]) -> None:
        """Call ready with what happened (poll's events) whenever one of events does."""

    def leave_socket(self, handle: int) -> None:
        """Watch it no longer; before it is closed."""

    def call(self, function: Callable[[], None]) -> None:
        """Call a function once, in the wait under way or the next one; from any thread."""

    def add(self, timed: Timed) -> None:
        """Have its deadlines kept."""

    def remove(self, timed: Timed) -> None:
        """Have them kept no longer."""

    def wait(self, timeout: float) -> bool:
        """Wait at most so many seconds, or until something happened."""
