"""Send through a real Sink and see what it hands back."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from typing import Any, Callable, Dict, List

from se3_uploader import config
from se3_uploader.policy import Answer
from se3_uploader.sink import Delivery, Sink
from se3_uploader.wake import Wake

BODY = b'{"identity_name": "\xe5\xbc\xa0\xe4\xb8\x89"}'


def endpoint(url: str, **changes: Any) -> config.Endpoint:
    """An endpoint for events, with time limits short enough for tests."""
    changes.setdefault("timeout", config.Timeout(connect=2.0, read=2.0, total=5.0))
    changes.setdefault("kind", "history_event")
    return config.Endpoint(url=url, name="platform", **changes)


class Posting:
    """A sink with a thread of its own, and everything that it handed back; closed by `with`."""

    def __init__(self, url: str, **changes: Any) -> None:
        self.answers: Dict[int, List[Answer]] = {}
        """Delivery id -> answers; one each, if the sink is right."""
        self._arrived = threading.Condition()
        self._submitted = 0
        self.turns = 0
        """How often the loop has waited."""
        self._wake = Wake(())
        self.sink = Sink(self._wake, endpoint(url, **changes), self._collect)
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="engine")
        self._thread.start()

    def _run(self) -> None:
        while not self._closed:
            self.turn(60.0)

    def turn(self, timeout: float) -> None:
        """Let the loop wait once; in the thread of the sink only."""
        self.turns += 1
        self._wake.wait(timeout)

    def in_thread(self, function: Callable[[], None]) -> None:
        """Do something in the thread of the sink."""
        if self._closed:
            function()
            return
        done: Future[None] = Future()

        def run() -> None:
            try:
                done.set_result(function())
            except RuntimeError as error:
                done.set_exception(error)

        self._wake.call(run)
        done.result(60.0)

    def submit(self, body: bytes = BODY, key: str = "") -> int:
        """Submit a delivery; returns its id, counted from 0. The key is key-ID unless given."""
        number = self._submitted
        self.in_thread(lambda: self.submit_here(body, key))
        return number

    def submit_here(self, body: bytes, key: str = "") -> None:
        """The same in the thread of the sink."""
        number = self._submitted
        self._submitted += 1
        self.sink.submit(Delivery(number, key or f"key-{number}", body))

    def wait(self, number: int, timeout: float = 15.0) -> Answer:
        """Wait for the answer to a delivery."""
        with self._arrived:
            assert self._arrived.wait_for(lambda: number in self.answers, timeout), "no answer"
            return self.answers[number][0]

    def post(self, body: bytes = BODY, key: str = "") -> Answer:
        """Submit a delivery and wait for its answer."""
        return self.wait(self.submit(body, key))

    def _collect(self, number: int, answer: Answer) -> None:
        with self._arrived:
            self.answers.setdefault(number, []).append(answer)
            self._arrived.notify_all()

    def close(self, timeout: float) -> None:
        """Close the sink, and end its thread."""
        self.in_thread(lambda: self.sink.close(timeout))
        if not self._closed:
            self._closed = True
            self._wake.set()
            self._thread.join()
            self._wake.close()

    def __enter__(self) -> Posting:
        return self

    def __exit__(self, *_: object) -> None:
        self.close(5.0)


def post(url: str, body: bytes = BODY, **changes: Any) -> Answer:
    """One POST on a sink of its own."""
    with Posting(url, **changes) as posting:
        return posting.post(body)
