"""What must hold after every story; it shares no code with the engine, and reads tables only."""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from contextlib import closing
from typing import TYPE_CHECKING, Dict, List, Set

if TYPE_CHECKING:
    from .platform import Platform
    from .story import Story

MOST_UNDONE = 120
"""Acceptances that a crash may undo for an endpoint: a group of receipts, and the in flight."""
REJECTIONS = 4
"""An event that the platform rejects is dead after 1 + reject_after attempts."""
PLENTY = 10_000_000
"""A budget for copies that is never used up."""


def accounts(path: str) -> Dict[str, Dict[str, int]]:
    """endpoint -> the sums of its account over all generations."""
    columns = ("seen", "pending", "delivered", "dead", "lost")
    sums = ", ".join(f"sum({column})" for column in columns)
    with closing(sqlite3.connect(path)) as db:
        rows = db.execute(
            f"SELECT name, {sums} FROM ledger JOIN endpoint ON endpoint.id = endpoint_id"
            " GROUP BY name"
        ).fetchall()
    return {name: dict(zip(columns, numbers)) for name, *numbers in rows}


def delivered(path: str) -> Dict[str, int]:
    """endpoint -> how many are delivered by its account."""
    return {name: account["delivered"] for name, account in accounts(path).items()}


def copied(path: str, state: int = 0) -> Dict[str, Set[int]]:
    """endpoint -> serials of the events in a state (pending) whose payloads the outbox keeps."""
    found: Dict[str, Set[int]] = {}
    with closing(sqlite3.connect(path)) as db:
        for name, body in db.execute(
            "SELECT name, body FROM copy JOIN delivery ON delivery.id = delivery_id"
            " JOIN endpoint ON endpoint.id = endpoint_id WHERE delivery.state = ?",
            (state,),
        ):
            event = json.loads(body)
            found.setdefault(name, set()).add(
                int(event.get("report") or event.get("identity_id") or 0)
            )
    return found


def judge(story: Story) -> List[str]:
    """Everything that is wrong after a story; empty when all invariants held."""
    path = story.config.outbox.path
    wrong = _account_is_true(path)
    found = accounts(path)
    pruned = _receipts_are_pruned(path)
    if story.process.most_undone > MOST_UNDONE:
        wrong.append(f"a crash undid {story.process.most_undone} acceptances")
    for name, platform in story.platforms.items():
        account = found.get(name, dict.fromkeys(("pending", "delivered", "dead", "lost"), 0))
        texts = _sent(story, name, account, pruned)
        if name == "status":
            texts += _reports(story, platform)
        else:
            texts += _events(story, platform, account, story.process.safe[name])
        wrong += [f"{name}: {text}" for text in texts]
    return wrong


def _sent(story: Story, name: str, account: Dict[str, int], pruned: bool) -> List[str]:
    """What holds for events and reports alike."""
    wrong = []
    platform, undone = story.platforms[name], story.process.undone[name]
    if account["pending"]:
        wrong.append(f"{account['pending']} are still pending")
    known = sum(arrival.known for arrival in platform.arrivals)
    if account["delivered"] != known - undone:
        wrong.append(
            f"{account['delivered']} are delivered by the account, {known} were accepted,"
            f" {undone} were undone by crashes and operators"
        )
    arrived = Counter(arrival.serial for arrival in platform.arrivals)
    repeats = sum(arrived.values()) - len(arrived)
    excused = sum(not arrival.known for arrival in platform.arrivals) + undone
    # A renamed row is another event once the source has changed under us.
    excused += sum(story.box.renamed.values()) * (_generations(story.config.outbox.path) - 1)
    if repeats > excused and not pruned:
        wrong.append(f"{repeats} were sent again, and only {excused} acceptances were not known")
    for serial, keys in platform.keys.items():
        if len(keys) > 1 and serial not in story.box.renamed:
            wrong.append(f"number {serial} was sent under {len(keys)} idempotency keys")
    owners = Counter(key for keys in platform.keys.values() for key in keys)
    if any(count > 1 for count in owners.values()):
        wrong.append("two were sent under the same idempotency key")
    return wrong


def _events(story: Story, platform: Platform, account: Dict[str, int], safe: Set[int]) -> List[str]:
    wrong, events = [], story.box.events
    arrived = {arrival.serial for arrival in platform.arrivals}
    given_up = {serial for serial in events if _may_be_dead(platform, serial)}
    missing = {
        serial for serial, event in events.items() if event.usable and serial not in arrived
    } - given_up
    living = [serial for serial in missing if not events[serial].deleted]
    if living:
        wrong.append(f"never arrived though the box still holds them: {living[:10]}")
    if missing & safe:
        wrong.append(f"never arrived though there was a copy: {sorted(missing & safe)[:10]}")
    may_be_dead = given_up | {serial for serial, event in events.items() if not event.usable}
    may_be_lost = story.box.deleted | may_be_dead | set(story.box.renamed)
    if account["lost"] > _endings(story, may_be_lost):
        wrong.append(f"{account['lost']} are lost, and the box deleted {len(story.box.deleted)}")
    if account["dead"] > _endings(story, may_be_dead):
        wrong.append(f"{account['dead']} are dead, and only {len(may_be_dead)} had a reason")
    return wrong


def _endings(story: Story, serials: Set[int]) -> int:
    """How often events can have come to such an end: as what they were, and as what they are."""
    return sum(1 + story.box.renamed[serial] for serial in serials)


def _may_be_dead(platform: Platform, serial: int) -> bool:
    """Was it rejected often enough by a platform that took others, or refused as too large?"""
    if platform.rejections.get(serial, 0) >= REJECTIONS:
        return serial in platform.poison or serial in platform.excused
    return serial in platform.excused and serial in platform.too_large


def _reports(story: Story, platform: Platform) -> List[str]:
    process = story.process
    made = range(1, process.reports + 1)
    arrived = {arrival.serial for arrival in platform.arrivals}
    missing = [
        number
        for number in made
        if number not in arrived and platform.rejections.get(number, 0) < REJECTIONS
    ]
    wrong = []
    if process.reports in missing:
        wrong.append("the newest report never arrived")
    if story.config.device_status.keep == "all" and story.config.outbox.max_size >= PLENTY:
        missing = [number for number in missing if number not in process.forgotten_reports]
        if missing:
            wrong.append(f"reports never arrived: {missing[:10]}")
    return wrong


def _account_is_true(path: str) -> List[str]:
    """The sums of the ledger are the rows of the outbox, by endpoint, generation and state.

    Only receipts may be missing: reports (generation 0) leave none, and old ones are deleted.
    """
    wrong = []
    with closing(sqlite3.connect(path)) as db:
        counted = {
            (endpoint, generation): numbers
            for endpoint, generation, *numbers in db.execute(
                "SELECT endpoint_id, generation_id, sum(state = 0), sum(state = 2),"
                " sum(state = 1), sum(state > 2) FROM delivery GROUP BY 1, 2"
            )
        }
        ledger = db.execute(
            "SELECT endpoint_id, generation_id, pending, dead, delivered, lost, seen FROM ledger"
        ).fetchall()
        orphans, stale = db.execute(
            "SELECT count(*), sum(delivery_id NOT IN (SELECT id FROM delivery)) FROM copy WHERE"
            " delivery_id NOT IN (SELECT id FROM delivery WHERE state IN (0, 2))"
        ).fetchone()
    for endpoint, generation, *numbers, seen in ledger:
        rows = counted.get((endpoint, generation), [0, 0, 0, 0])
        if rows[:2] != numbers[:2] or rows[2] > numbers[2] or rows[3] > numbers[3]:
            wrong.append(f"the account of {endpoint}/{generation} is not what its rows say")
        if seen != sum(numbers):
            wrong.append(f"the account of {endpoint}/{generation} does not balance")
    if orphans:
        wrong.append(f"{orphans} copies belong to nothing that is open, {stale} to nothing at all")
    return wrong


def _generations(path: str) -> int:
    """How often the source became another one, the first time included."""
    with closing(sqlite3.connect(path)) as db:
        ((number,),) = db.execute("SELECT count(*) FROM generation WHERE number > 0")
    return int(number)


def _receipts_are_pruned(path: str) -> bool:
    """Did a jump of the clock make receipts look so old that they were deleted?"""
    with closing(sqlite3.connect(path)) as db:
        ((kept,),) = db.execute("SELECT count(*) FROM delivery WHERE generation_id > 0")
        ((seen,),) = db.execute("SELECT sum(seen) FROM ledger WHERE generation_id > 0")
    return kept < (seen or 0)
