"""What must hold after every story; it shares no code with the engine, and reads tables only."""

from __future__ import annotations

import sqlite3
from collections import Counter
from typing import TYPE_CHECKING, Dict, List

if TYPE_CHECKING:
    from .platform import Platform
    from .story import Story

MOST_UNDONE = 120
"""Acceptances that a crash may undo for an endpoint: a group of receipts, and the in flight."""
REJECTIONS = 4
"""An event that the platform rejects is dead after 1 + reject_after attempts."""


def accounts(path: str) -> Dict[str, Dict[str, int]]:
    """endpoint -> the sums of its account over all generations."""
    columns = ("seen", "pending", "delivered", "dead", "lost")
    sums = ", ".join(f"sum({column})" for column in columns)
    db = sqlite3.connect(path)
    rows = db.execute(
        f"SELECT name, {sums} FROM ledger JOIN endpoint ON endpoint.id = endpoint_id GROUP BY name"
    ).fetchall()
    db.close()
    return {name: dict(zip(columns, numbers)) for name, *numbers in rows}


def judge(story: Story) -> List[str]:
    """Everything that is wrong after a story; empty when all invariants held."""
    wrong: List[str] = []
    found = accounts(story.config.outbox.path)
    wrong += _account_is_true(story.config.outbox.path)
    if story.most_undone > MOST_UNDONE:
        wrong.append(f"a crash undid {story.most_undone} acceptances")
    for name, platform in story.platforms.items():
        account = found.get(name)
        if account is None:
            if story.box.events:
                wrong.append(f"{name}: has no account")
            continue
        wrong += [f"{name}: {text}" for text in _endpoint(story, name, platform, account)]
    return wrong


def _endpoint(story: Story, name: str, platform: Platform, account: Dict[str, int]) -> List[str]:
    wrong = []
    arrived = Counter(arrival.serial for arrival in platform.arrivals)
    if account["pending"]:
        wrong.append(f"{account['pending']} are still pending")
    missing = [
        event
        for event in story.box.events.values()
        if event.usable and not arrived[event.serial] and not _is_poison(platform, event.serial)
    ]
    living = [event.serial for event in missing if event.deleted_at is None]
    if living:
        wrong.append(f"never arrived though the box still holds them: {living[:10]}")
    if account["lost"] > len(story.box.deleted):
        wrong.append(f"{account['lost']} are lost, and the box deleted {len(story.box.deleted)}")
    known = sum(arrival.known for arrival in platform.arrivals)
    if account["delivered"] != known - story.undone[name]:
        wrong.append(
            f"{account['delivered']} are delivered by the account, {known} were accepted,"
            f" crashes undid {story.undone[name]}"
        )
    repeats = sum(arrived.values()) - len(arrived)
    excused = sum(not arrival.known for arrival in platform.arrivals) + story.undone[name]
    if repeats > excused:
        wrong.append(f"{repeats} were sent again, and only {excused} acceptances were not known")
    for serial, keys in platform.keys.items():
        if len(keys) > 1:
            wrong.append(f"event {serial} was sent under {len(keys)} idempotency keys")
    owners = Counter(key for keys in platform.keys.values() for key in keys)
    if any(count > 1 for count in owners.values()):
        wrong.append("two events were sent under the same idempotency key")
    return wrong


def _is_poison(platform: Platform, serial: int) -> bool:
    return platform.rejections.get(serial, 0) >= REJECTIONS


def _account_is_true(path: str) -> List[str]:
    """The sums of the ledger are the rows of the outbox, by endpoint, generation and state."""
    db = sqlite3.connect(path)
    counted = {
        (endpoint, generation): numbers
        for endpoint, generation, *numbers in db.execute(
            "SELECT endpoint_id, generation_id, count(*), sum(state = 0), sum(state = 1),"
            " sum(state = 2), sum(state > 2) FROM delivery GROUP BY 1, 2"
        )
    }
    wrong = []
    for endpoint, generation, *numbers in db.execute(
        "SELECT endpoint_id, generation_id, seen, pending, delivered, dead, lost FROM ledger"
    ):
        if counted.get((endpoint, generation), [0, 0, 0, 0, 0]) != numbers:
            wrong.append(f"the account of {endpoint}/{generation} is not what its rows say")
    orphans = db.execute(
        "SELECT count(*) FROM copy WHERE delivery_id NOT IN"
        " (SELECT id FROM delivery WHERE state IN (0, 2))"
    ).fetchone()[0]
    if orphans:
        wrong.append(f"{orphans} copies belong to nothing that is open")
    db.close()
    return wrong
