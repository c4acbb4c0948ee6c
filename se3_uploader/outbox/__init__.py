"""The outbox: what was seen, what became of it, and copies of payloads that are at risk."""

from .reader import REJECTED, REPORTS, SUPERSEDED, Cursor, EndpointState, Entry
from .schema import (
    DEAD,
    DELIVERED,
    DISCARDED,
    LIVE,
    LOST,
    PENDING,
    STATES,
    OutboxDamaged,
    OutboxError,
    OutboxMissing,
    quarantine,
)
from .store import Changes, Outbox

__all__ = [
    "DEAD",
    "DELIVERED",
    "DISCARDED",
    "LIVE",
    "LOST",
    "PENDING",
    "REJECTED",
    "REPORTS",
    "STATES",
    "SUPERSEDED",
    "Changes",
    "Cursor",
    "EndpointState",
    "Entry",
    "Outbox",
    "OutboxDamaged",
    "OutboxError",
    "OutboxMissing",
    "quarantine",
]
