"""What goes next for one endpoint: a real queue, without anything around it."""

from __future__ import annotations

from dataclasses import replace
from typing import List, Optional

import pytest

from se3_uploader import policy
from se3_uploader.config import Endpoint
from se3_uploader.engine.queue import FRESH, PROBES, Queue, Seen
from se3_uploader.outbox import DELIVERED, Cursor, Entry
from se3_uploader.sink import Delivery


class Nowhere:
    """A transport that is not used here."""

    certificate_not_after: Optional[float] = None

    def submit(self, delivery: Delivery) -> None:
        """Fail, since a queue sends nothing by itself."""
        raise AssertionError(delivery)

    def close(self, timeout: float) -> None:
        """Nothing is open."""


def queue(**changes: object) -> Queue:
    """The queue of an endpoint with nothing in it and nothing in the outbox."""
    endpoint = Endpoint(kind="history_event", url="http://p/", name="p")
    return Queue(replace(endpoint, **changes), 1, Nowhere(), recorded=False)  # type: ignore[arg-type]


def entry(key: int, *, tried: int = 0, row_id: Optional[int] = None) -> Entry:
    """A pending event."""
    made = Entry(1, 1, key, b"%016d" % key, 0.0, attempts=tried)
    made.row_id = row_id
    return made


def keys(entries: List[Entry]) -> List[object]:
    """Which events these are."""
    return [each.key for each in entries]


def unwell(line: Queue, round_: int = 0) -> None:
    """Let the endpoint be away."""
    line.health = line.health._replace(state=policy.RETRYING, round=round_)


def test_new_then_old_then_one_that_was_tried() -> None:
    """Live events go before the backlog, and a single tried one comes after them."""
    line = queue()
    line.fresh.extend([entry(10), entry(11)])
    line.backlog.extend([entry(1), entry(2)])
    line.waiting = [(5.0, entry(90, tried=1)), (0.0, entry(91, tried=1)), (0.0, entry(92, tried=1))]
    assert keys(line.next_entries(16, 1.0)) == [10, 11, 1, 2, 91]
    assert keys(line.next_entries(16, 1.0)) == [92]
    assert keys(line.next_entries(16, 1.0)) == []
    assert keys(line.next_entries(16, 5.0)) == [90]


def test_limit() -> None:
    """No more are taken than asked for, and with a limit of one an untried one goes."""
    line = queue()
    line.fresh.extend(map(entry, range(40)))
    line.waiting = [(0.0, entry(90, tried=1))]
    assert keys(line.next_entries(1, 0.0)) == [0]
    assert keys(line.next_entries(16, 0.0)) == [*range(1, 16), 90]


def test_what_was_put_back_stays_in_front() -> None:
    """What could not be built for lack of room is next, before what came later."""
    line = queue()
    line.fresh.extend(map(entry, range(6)))
    taken = line.next_entries(4, 0.0)
    line.put_back(taken[1:], 0.0)
    assert keys(line.next_entries(5, 0.0)) == [1, 2, 3, 4]
    line.put_back([entry(50)], 9.0)
    assert keys(line.next_entries(5, 0.0)) == [5]
    assert keys(line.next_entries(5, 9.0)) == [50]


def test_the_outbox_goes_before_tried_ones() -> None:
    """With nothing untried in memory the recorded backlog is looked at before a tried one goes."""
    line = queue()
    line.waiting = [(0.0, entry(90, tried=1))]
    line.recorded = True
    assert line.next_entries(16, 0.0) == []
    line.recorded = False
    assert keys(line.next_entries(16, 0.0)) == [90]


@pytest.mark.parametrize(("tried", "round_", "first"), [
    (PROBES - 1, 1, 0), (PROBES, 1, 90), (PROBES, 2, 0), (3 * PROBES, 3, 90),
])  # fmt: skip
def test_probes_take_turns(tried: int, round_: int, first: int) -> None:
    """While the endpoint is away others are tried; after many of them tried ones have turns."""
    line = queue()
    unwell(line, round_)
    line.fresh.extend(map(entry, range(5)))
    line.waiting = [(0.0, entry(90 + number, tried=1)) for number in range(tried)]
    assert keys(line.next_entries(1, 0.0)) == [first]


def test_strict_order() -> None:
    """With max_in_flight 1 old events go first, new ones only once the outbox holds no others."""
    line = queue(max_in_flight=1)
    line.backlog.extend([entry(1), entry(2)])
    line.fresh.extend([entry(10)])
    line.recorded = True
    assert keys(line.next_entries(16, 0.0)) == [1, 2]
    assert keys(line.next_entries(16, 0.0)) == []
    line.recorded = False
    assert keys(line.next_entries(16, 0.0)) == [10]


def test_strict_order_waits_for_the_first() -> None:
    """An event to be tried again keeps all others waiting, and goes first."""
    line = queue(max_in_flight=1)
    line.make_ready(entry(2), b"two")
    line.again(entry(1), b"one", 7.0)
    assert line.slots(6.9) == 0
    assert line.next_due() == 7.0
    assert line.slots(7.0) == 1
    assert line.next_ready()[0].key == 1
    line = queue(max_in_flight=1)
    line.backlog.extend([entry(3)])
    line.put_back([entry(1), entry(2)], 9.0)
    assert line.slots(8.0) == 0
    assert keys(line.next_entries(16, 9.0)) == [1, 2, 3]


def test_when_something_is_due() -> None:
    """The next moment is that of the earliest that may be sent, no earlier than the endpoint's."""
    line = queue()
    assert line.next_due() is None
    line.waiting = [(8.0, entry(1, tried=1)), (3.0, entry(2, tried=1))]
    assert line.next_due() == 3.0
    line.health = line.health._replace(next_attempt=5.0)
    assert line.next_due() == 5.0
    line.fresh.append(entry(3))
    assert line.next_due() == 5.0


def test_bytes_that_are_ready() -> None:
    """Payloads built ahead are counted as they come and go."""
    line = queue()
    line.make_ready(entry(1), b"12345")
    line.make_ready(entry(2), b"123", front=True)
    assert line.ready_bytes == 8
    assert line.next_ready()[1] == b"123"
    assert line.ready_bytes == 5


def test_memory_while_away() -> None:
    """Of an endpoint that is away recorded new events are left to the outbox; others stay."""
    line = queue()
    recorded, not_yet = entry(1, row_id=7), entry(2)
    for each in (recorded, not_yet):
        line.hold(each)
        line.fresh.append(each)
    line.forget([])
    assert len(line.held) == 2, "all is kept while it is well"
    unwell(line)
    line.forget([])
    assert keys(list(line.held.values())) == [2]
    assert keys(list(line.fresh)) == [2]
    assert line.recorded


def test_ended_entries_are_let_go_once_written() -> None:
    """What is delivered stays known until that is on the disk."""
    line = queue()
    done, open_ = entry(1), entry(2)
    line.hold(done)
    line.hold(open_)
    done.state = DELIVERED
    assert len(line.held) == 2
    line.forget([done, open_])
    assert keys(list(line.held.values())) == [2]


def test_room() -> None:
    """Neither new events nor such to be tried again pile up in memory."""
    line = queue()
    assert line.has_room()
    line.fresh.extend(map(entry, range(FRESH)))
    assert not line.has_room()
    line.fresh.clear()
    line.waiting = [(0.0, entry(number)) for number in range(2 * FRESH)]
    assert not line.has_room()


def test_the_place_covers_no_event_that_is_not_recorded() -> None:
    """The place moves over what has ended or is recorded with it, and stops at all else."""
    line = queue()
    events = [entry(number) for number in range(1, 5)]
    events[0].state = DELIVERED
    for number, each in enumerate(events, 1):
        line.seen.append(Seen(each, Cursor(number, b"f", None), at=float(number)))
    covered, place = line.cover(until=0.0)
    assert keys(covered) == [1]
    assert place == Cursor(1, b"f", None)
    covered, place = line.cover(until=2.5)
    assert keys(covered) == [2]
    assert place == Cursor(2, b"f", None)
    assert line.cover(until=2.5) == ([], None)
    unwell(line)
    covered, place = line.cover(until=2.5)
    assert keys(covered) == [3, 4]
    assert place == Cursor(4, b"f", None)
