"""Deliveries -> answers: POSTs to an endpoint, without waiting for any of them; no database."""

from __future__ import annotations

import time
from collections import deque
from typing import Callable, Deque, List, Optional

from .. import config
from ..policy import Answer
from .connect import try_connection
from .credentials import CredentialsError, read_access
from .faults import Stopped, explain
from .line import Delivery, Line
from .loop import FOREVER, Loop, Timed
from .opening import Ways

__all__ = ["CredentialsError", "Delivery", "Sink", "Timed", "read_access", "try_connection"]

Collect = Callable[[int, Answer], None]


class Sink:
    """Everything that is POSTed to one endpoint.

    At most `max_in_flight` POSTs are under way at once, each on a line of its own. `collect` is
    called while the loop waits, or from close, exactly once for each delivery.
    """

    def __init__(self, loop: Loop, endpoint: config.Endpoint, collect: Collect) -> None:
        """Connect nothing yet."""
        self.endpoint = endpoint
        self.certificate_not_after: Optional[float] = None
        """Epoch seconds at which the platform's certificate expires; None until it was seen."""
        self._loop = loop
        self._collect = collect
        self._ways = Ways(endpoint)
        self._lines: List[Line] = []
        self._idle: List[Line] = []
        self._waiting: Deque[Delivery] = deque()
        self._closing = False

    def submit(self, delivery: Delivery) -> None:
        """Have a delivery sent; never blocks. Raises RuntimeError after close."""
        if self._closing:
            raise RuntimeError("the sink is closed")
        if self._idle:
            self._idle.pop().post(delivery)
        elif len(self._lines) < self.endpoint.max_in_flight:
            if not self._lines:
                self._loop.add(self)
            line = Line(self.endpoint, self._ways, self._loop, self._answered)
            self._lines.append(line)
            line.post(delivery)
        else:
            self._waiting.append(delivery)

    def _answered(
        self, line: Line, delivery: Delivery, answer: Answer, certificate: Optional[float]
    ) -> None:
        if certificate is not None:
            self.certificate_not_after = certificate
        if self._waiting:
            line.post(self._waiting.popleft())
        else:
            self._idle.append(line)
        self._collect(delivery.id, answer)

    @property
    def deadline(self) -> float:
        """When the next time limit of a POST passes (monotonic seconds)."""
        return min([line.deadline for line in self._lines], default=FOREVER)

    def expire(self, now: float) -> None:
        """End the POSTs whose time is over."""
        for line in self._lines:
            line.expire(now)

    def close(self, timeout: float) -> None:
        """Wait up to timeout seconds for what is in flight, cut off the rest, close all lines.

        What was cut off is collected with the fault "connection".
        """
        if self._closing:
            return
        self._closing = True
        end = time.monotonic() + timeout
        while len(self._idle) < len(self._lines) and time.monotonic() < end:
            self._loop.wait(end - time.monotonic())
        waiting, self._waiting = self._waiting, deque()
        for line in self._lines:
            line.stop()
        for delivery in waiting:
            fault, detail = explain(Stopped(), self.endpoint)
            self._collect(delivery.id, Answer(fault=fault, detail=detail))
        if self._lines:
            self._loop.remove(self)
        self._lines, self._idle = [], []
