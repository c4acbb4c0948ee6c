"""`se3-uploader outbox`: dead letters, looked at, sent again or given up."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from datetime import datetime
from typing import Any, Dict, Iterable, Iterator, List, Optional, Sequence, Tuple

import orjson

from .. import lock
from ..config import Config
from ..outbox import DEAD, PENDING, letters
from ..outbox.letters import Filter, Letter, Letters
from ..units import counted

OK, PROBLEM, USAGE = 0, 1, 2
SHOWN = 1000
"""Rows that list shows people; --json has no limit."""
WIDE = 100
"""Columns of a terminal from which on a table is readable."""
HARMLESS = {
    "timestamp", "score", "group_name", "ext_data", "device_ip", "ep_id", "person_type",
    "device_type", "dev_sno", "upload_notes",
}  # fmt: skip
"""Fields of a HistoryEvent that tell nothing about the person."""
PICTURES = ("reg_pic", "spot_pic")


def run(options: argparse.Namespace, loaded: Config) -> int:
    """Carry out a command; returns the exit code. Raises OutboxError."""
    wanted = Filter(
        tuple(dict.fromkeys(options.ids)), options.endpoint, options.reason, options.since,
        options.until,
    )  # fmt: skip
    opened = Letters(loaded.outbox.path)
    try:
        if options.action == "list":
            return _list(options, wanted, opened)
        if options.action == "show":
            return _show(options, wanted, opened)
        if options.action == "retry":
            return _retry(options, wanted, opened, loaded)
        if options.person is not None:
            return _erase(options, wanted, opened, loaded)
        return _discard(options, wanted, opened, loaded)
    finally:
        opened.close()


def _complain(text: str) -> None:
    print(f"se3-uploader outbox: {text}", file=sys.stderr)


def _all_known(ids: Sequence[int], opened: Letters, state: Optional[int] = None) -> bool:
    unknown = opened.unknown(ids, state)
    if unknown:
        what = "delivery" if state is None else "dead letter"
        _complain(
            f"no {what} has the id {', '.join(map(str, unknown))}; nothing was done."
            " `se3-uploader outbox list` shows the ids"
        )
    return not unknown


# Looking


def _list(options: argparse.Namespace, wanted: Filter, opened: Letters) -> int:
    if not _all_known(wanted.ids, opened):
        return PROBLEM
    found = opened.find(wanted)
    if options.json:
        _print_json(_fields(letter) for letter in found)
        return OK
    from .terminal import console

    shown: List[Letter] = []
    states: Counter[str] = Counter()
    for letter in found:
        states[letter.state_name] += 1
        if len(shown) < SHOWN:
            shown.append(letter)
    if not shown:
        print("Nothing: no delivery (that was asked for) is dead, lost, discarded or stripped.")
        return OK
    out = console()
    for part in _table(shown) if out.width >= WIDE else _blocks(shown):
        out.print(part)
    print()
    print(", ".join(f"{number:,} {name}" for name, number in states.items()))
    if sum(states.values()) > SHOWN:
        print(f"only the first {SHOWN:,} are shown; --json shows all")
    if states["dead"]:
        print(
            f"se3-uploader outbox retry sends {counted(states['dead'], 'dead letter')} again,"
            " outbox show tells more"
        )
    return OK


def _fields(letter: Letter) -> Dict[str, Any]:
    return {
        "id": letter.id,
        "state": letter.state_name,
        "endpoint": letter.endpoint,
        "kind": letter.kind,
        "event": letter.key,
        "at": datetime.fromtimestamp(letter.at).astimezone().isoformat(timespec="seconds"),
        "attempts": letter.attempts,
        "reason": letter.reason,
        "answer": letter.answer,
        "payload_bytes": letter.bytes,
    }


def _print_json(found: Iterable[Dict[str, Any]]) -> None:
    """Print a list, item by item, so that a long one needs no memory."""
    separator = "[\n"
    for item in found:
        print(separator + json.dumps(item, ensure_ascii=False), end="")
        separator = ",\n"
    print("[]" if separator == "[\n" else "\n]")


def _when(letter: Letter) -> str:
    return datetime.fromtimestamp(letter.at).strftime("%Y-%m-%d %H:%M:%S")


def _table(found: Sequence[Letter]) -> Iterator[Any]:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("id", "state", "endpoint", "event", "when", "attempts", "reason"):
        right = name in ("id", "attempts")
        table.add_column(
            name, justify="right" if right else "left", overflow="fold", no_wrap=name == "when"
        )
    for letter in found:
        table.add_row(
            str(letter.id), letter.state_name, Text(letter.endpoint), Text(str(letter.key)),
            _when(letter), str(letter.attempts), Text(letter.reason or ""),
        )  # fmt: skip
    yield table


def _blocks(found: Sequence[Letter]) -> Iterator[Any]:
    """The same for a narrow terminal: two or three lines each."""
    from rich.padding import Padding
    from rich.text import Text

    for letter in found:
        yield Text(f"{letter.id} {letter.state_name} {_when(letter)}", style="bold")
        text = f"event {letter.key}, {letter.endpoint}, attempts: {letter.attempts}"
        yield Padding(Text(f"{text}\n{letter.reason or ''}".rstrip()), (0, 0, 0, 2))


def _show(options: argparse.Namespace, wanted: Filter, opened: Letters) -> int:
    if not _all_known(wanted.ids, opened):
        return PROBLEM
    ids = wanted.ids or tuple(letter.id for letter in opened.find(wanted, (DEAD,)))
    if options.json:
        _print_json(
            {**_fields(letter), "payload": _payload(letter, body, options.payload, whole=True)}
            for letter, body in map(opened.get, ids)
        )
        return OK
    if not ids:
        print("There is no dead letter (that was asked for).")
    for row_id in ids:
        letter, body = opened.get(row_id)
        _show_one(letter, _payload(letter, body, options.payload, whole=False))
    return OK


def _show_one(letter: Letter, payload: Optional[Dict[str, Any]]) -> None:
    from rich.text import Text

    from .terminal import console, grid

    out = console()
    out.print(Text(f"{letter.id} {letter.state_name}", style="bold"))
    lines = [
        ("endpoint", letter.endpoint),
        ("event", str(letter.key)),
        ("when", _when(letter)),
        ("attempts", str(letter.attempts)),
        ("reason", letter.reason or ""),
        ("answer", letter.answer or ""),
        ("payload", "none is kept" if payload is None else ""),
    ]
    out.print(grid([(name, Text(text)) for name, text in lines if text]))
    if payload is not None:
        out.print(Text(json.dumps(payload, ensure_ascii=False, indent=2)), soft_wrap=True)


def _payload(
    letter: Letter, body: Optional[bytes], names: bool, *, whole: bool
) -> Optional[Dict[str, Any]]:
    """The kept payload, masked unless names are asked for; whole: then even with its pictures."""
    if body is None:
        return None
    payload: Dict[str, Any] = orjson.loads(body)
    if letter.kind == "device_status" or (names and whole):
        return payload
    return _masked(payload, names)


def _masked(event: Dict[str, Any], names: bool) -> Dict[str, Any]:
    masked: Dict[str, Any] = {}
    for name, value in event.items():
        if name in PICTURES:
            masked[name] = f"(picture, {len(value):,} characters)" if value else value
        elif isinstance(value, dict) and (names or name in HARMLESS):
            masked[name] = _masked(value, names)
        else:
            masked[name] = value if names or name in HARMLESS else "***"
    return masked


# Changing


def _retry(options: argparse.Namespace, wanted: Filter, opened: Letters, loaded: Config) -> int:
    found, code = _agreed(options, wanted, opened, "Send {} again?")
    if not found:
        return code
    done = letters.retry(loaded.outbox.path, [letter.id for letter in found], time.time())
    print(f"{counted(done, 'dead letter')} made pending again.")
    gone = {letter.endpoint for letter in found} - {e.name for e in loaded.endpoints}
    if gone:
        print(
            f"{', '.join(sorted(gone))}: no longer in uploader.yaml, so nothing is sent there until"
            " an endpoint has that name again."
        )
    if lock.holder(loaded.outbox.path) is None:
        print("The daemon is not running; they are sent once it runs.")
    return OK


def _discard(options: argparse.Namespace, wanted: Filter, opened: Letters, loaded: Config) -> int:
    question = "Give up {} for ever, and delete what is kept of them?"
    found, code = _agreed(options, wanted, opened, question)
    if not found:
        return code
    done = letters.discard(loaded.outbox.path, [letter.id for letter in found], time.time())
    print(f"{counted(done, 'dead letter')} discarded; counted as lost from now on.")
    return OK


def _agreed(
    options: argparse.Namespace, wanted: Filter, opened: Letters, question: str
) -> Tuple[List[Letter], int]:
    """The dead letters that are meant, once that was agreed to; else none, and the exit code."""
    if not _all_known(wanted.ids, opened, DEAD):
        return [], PROBLEM
    found = list(opened.find(wanted, (DEAD,)))
    if not found:
        print("There is no dead letter (that was asked for): nothing to do.")
        return [], OK
    about = Counter((letter.endpoint, letter.reason) for letter in found)
    reasons = [f"  {count:,} of {name}: {why}" for (name, why), count in about.most_common(5)]
    asked = "\n".join([*reasons, question.format(counted(len(found), "dead letter"))])
    code = _confirmed(options, asked)
    return (found, OK) if code is None else ([], code)


def _confirmed(options: argparse.Namespace, question: str) -> Optional[int]:
    """Ask whether to go on; None to do so, else the exit code."""
    if options.yes:
        return None
    if not sys.stdin.isatty() and options.action == "retry":
        return None  # there is nobody to ask, and nothing is given up
    if not sys.stdin.isatty():
        _complain("there is no terminal to ask on: give --yes if that is what you want")
        return USAGE
    try:
        answer = input(f"{question} [y/N] ")
    except EOFError:
        answer = ""
    if answer.strip().lower() in ("y", "yes"):
        return None
    print("Nothing was changed.")
    return OK


def _erase(options: argparse.Namespace, wanted: Filter, opened: Letters, loaded: Config) -> int:
    if wanted != Filter():
        _complain("--person stands alone: everything kept about the person is erased")
        return USAGE
    person = sys.stdin.readline().strip() if options.person == "-" else options.person
    path = loaded.outbox.path
    before = list(opened.about(person))
    print(f"Before: {_kept(before)} of this person.")
    if before:
        code = _confirmed(options, "Erase them, and give the dead letters among them up?")
        if code is not None:
            return code
        letters.erase(path, [letter.id for letter in before], time.time())
    folded = letters.fold(path)
    after = list(opened.about(person))
    print(f"After: {_kept(after)} of this person.")
    _say_what_is_left(before, folded, letters.set_aside(path))
    return PROBLEM if after or not folded else OK


def _kept(found: Sequence[Letter]) -> str:
    states = Counter(letter.state_name for letter in found)
    said = ", ".join(f"{number:,} {name}" for name, number in states.items())
    return f"the outbox keeps {len(found):,} payloads" + (f" ({said})" if said else "")


def _say_what_is_left(before: Sequence[Letter], folded: bool, aside: Sequence[str]) -> None:
    pending = sum(letter.state == PENDING for letter in before)
    if pending:
        print(
            f"{pending:,} of them still wait to be sent, as references to the event database: they"
            " are sent, and may be kept again, as long as it holds the person. Delete the person"
            " there first, then repeat this."
        )
    if not folded:
        print(
            "The write-ahead log of the outbox is in use and still holds old pages: repeat this in"
            " a moment."
        )
    for path in aside:
        print(f"{path} was damaged and set aside; it is not searched. Delete it.")
