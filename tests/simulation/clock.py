"""Time as a story has it: monotonic seconds, and a wall clock that may jump."""

from __future__ import annotations


class SimulatedClock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.time = 1_700_000_000.0
        self.went_back = False

    def monotonic(self) -> float:
        """Seconds that only ever grow."""
        return self.now

    def wall(self) -> float:
        """Epoch seconds."""
        return self.time

    def jump(self, seconds: float) -> None:
        """Set the wall clock to another time."""
        self.time += seconds
        self.went_back |= seconds < 0

    def move_to(self, now: float) -> None:
        """Let time pass."""
        self.time += now - self.now
        self.now = now
