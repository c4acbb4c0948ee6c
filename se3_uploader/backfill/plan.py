"""What a backfill would do: how many events, how many of them are known, how many bytes."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

from .. import payload
from ..config import Config, Endpoint
from ..engine.tail import same_history
from ..outbox import PENDING, Cursor
from ..outbox.backfills import Backfill, Backfills, is_to_be_sent
from ..payload import Strip, wanted_pictures
from ..source import Key, Source

SCAN = 20_000
"""Rows of the source looked at in one short read."""
SAMPLE = 40
"""Events, and at most twice as many, whose payloads are built to estimate the bytes to send."""
WITNESSES = 8
"""Rows asked whether the source is still the one that the outbox knows."""


@dataclass(frozen=True)
class Wanted:
    """What the operator asked for."""

    since: int
    """Epoch milliseconds, included."""
    until: int
    """Epoch milliseconds, excluded."""
    endpoints: Tuple[Endpoint, ...]
    rate: Optional[float] = None
    """Events per second to each endpoint, None: as fast as the platform takes them."""
    resend: bool = False
    strip: Strip = Strip.NOTHING
    """REQUESTED: send without pictures."""
    words: str = ""
    """The request as it was typed, by which it is known again after an interruption."""
    cut: bool = False
    """The range ends sooner than was typed: younger rows may still be incomplete."""
    begun: Optional[Backfill] = None
    """The same request, where it was interrupted before."""

    def resuming(self, begun: Optional[Backfill]) -> Wanted:
        """The same request with the range that was meant when it was first typed."""
        if begun is None:
            return self
        return replace(self, since=begun.since, until=begun.until, begun=begun)


@dataclass
class Share:
    """What one endpoint is to get."""

    known: Counter[int] = field(default_factory=Counter)
    """State -> how many events of the range the outbox knows already."""
    to_send: int = 0
    bytes_each: float = 0.0
    """Average of a few events' payloads, pictures included."""

    @property
    def bytes(self) -> int:
        """About how much there is to send."""
        return round(self.to_send * self.bytes_each)


@dataclass
class Plan:
    """What a backfill would do."""

    events: int
    """In the range, as the source stands now."""
    shares: Dict[str, Share]
    """By the names of the endpoints."""

    def seconds(self, rate: Optional[float]) -> Optional[float]:
        """How long the sending takes at a rate (events per second), None without one."""
        if rate is None:
            return None
        return max(share.to_send for share in self.shares.values()) / rate


class Page(NamedTuple):
    """Keys of a time range, from one short read."""

    after: Optional[Key]
    """They stand after this one in the source."""
    keys: List[Key]


def scan(source: Source, since: int, until: int) -> Iterator[Page]:
    """Read the keys of a time range, page by page, with flat memory. Raises SourceError."""
    after: Optional[Key] = None
    while True:
        page = source.keys_between(since, until, after, SCAN)
        if page.keys:
            yield Page(after, page.keys)
        if page.scanned_to is None:
            return
        after = page.scanned_to


def plan(config: Config, wanted: Wanted, source: Source, outbox: Optional[Backfills]) -> Plan:
    """Count what there is to do; outbox is None where there is none yet. Writes nothing.

    Raises SourceError, OutboxError.
    """
    found = Plan(0, {endpoint.name: Share() for endpoint in wanted.endpoints})
    ids = outbox.endpoints() if outbox is not None else {}
    generation = _generation(config, source, outbox) if outbox is not None else None
    sample: List[Key] = []
    stride = 1
    for page in scan(source, wanted.since, wanted.until):
        found.events += len(page.keys)
        sample += page.keys[::stride]
        while len(sample) > 2 * SAMPLE:
            sample, stride = sample[::2], 2 * stride
        for name, share in found.shares.items():
            known: Counter[Tuple[int, int]] = Counter()
            if outbox is not None and name in ids:
                known = _known(wanted, source, outbox, ids[name], generation, page)
            _count(share, wanted, len(page.keys), known)
    for endpoint in wanted.endpoints:
        each = _bytes_each(config, wanted, endpoint, source, sample)
        found.shares[endpoint.name].bytes_each = each
    return found


def _count(share: Share, wanted: Wanted, events: int, known: Counter[Tuple[int, int]]) -> None:
    begun = wanted.begun.id if wanted.begun else float("inf")
    share.to_send += events
    for (state, lane), number in known.items():
        share.known[state] += number
        if state != PENDING and not is_to_be_sent(state, lane, wanted.resend, begun):
            share.to_send -= number


def _generation(config: Config, source: Source, outbox: Backfills) -> Optional[int]:
    """The generation that the source is in; None where it was wiped and nobody noticed yet."""
    generation = outbox.generation(config.source.name)
    if generation is None:
        return None
    for ref in outbox.witnesses(generation, WITNESSES):
        seen = Cursor(ref.key, ref.fingerprint, None)
        if not same_history(seen, source.look(ref.key, 1)):
            return None
    return generation


def _known(
    wanted: Wanted,
    source: Source,
    outbox: Backfills,
    endpoint_id: int,
    generation: Optional[int],
    page: Page,
) -> Counter[Tuple[int, int]]:
    """(state, lane) -> how many events of a page the outbox knows."""
    found, doubtful = outbox.known(endpoint_id, generation, page.keys)
    after: Optional[Key] = page.after
    while doubtful:
        exact = source.between(wanted.since, wanted.until, after, SCAN)
        refs = [ref for ref in exact.refs if ref.key in doubtful]
        known = outbox.known_exactly(endpoint_id, None, refs)
        found.update((event.state, event.lane) for event in known.values())
        if exact.scanned_to is None or any(ref.key == page.keys[-1] for ref in exact.refs):
            break
        after = exact.scanned_to
    return found


def _bytes_each(
    config: Config, wanted: Wanted, endpoint: Endpoint, source: Source, keys: Sequence[Key]
) -> float:
    columns = payload.columns_of(config.source)
    pictures = wanted_pictures(endpoint.pictures, wanted.strip)
    sizes = []
    for key in keys:
        for row in source.rows([key], pictures, 1).rows:
            try:
                built = payload.build(
                    row.values,
                    columns,
                    dev_sno=config.gateway.dev_sno,
                    unit=config.source.timestamp_unit,
                    wire_unit=config.history_event.timestamp_unit,
                    pictures=endpoint.pictures,
                    strip=wanted.strip,
                )
            except payload.Unusable:
                continue
            sizes.append(len(built.body))
    return sum(sizes) / len(sizes) if sizes else 0.0
