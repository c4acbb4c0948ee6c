"""All words of the command line. Imports nothing that a single command needs alone."""

from __future__ import annotations

import argparse
import time
from typing import Callable, List, Sequence, TypeVar

from .. import __version__
from ..config.formats import FORMATS
from . import times

MOST_IN_DEMO = 20_000
"""Events: the receiver keeps that many with their pictures."""
_Number = TypeVar("_Number", int, float)


def parser() -> argparse.ArgumentParser:
    """Make the parser of the whole command line."""
    words = argparse.ArgumentParser(
        prog="se3-uploader",
        description="Uploads every event of an SE3 AI mini machine, and the state of the box,"
        " to a platform. Nothing is lost.",
    )
    words.add_argument("--version", action="version", version=f"se3-uploader {__version__}")
    commands = words.add_subparsers(dest="command", metavar="COMMAND", required=True)
    configured = argparse.ArgumentParser(add_help=False)
    configured.add_argument(
        "-c", "--config", metavar="PATH", help="uploader.yaml (default: $SE3_UPLOADER_CONFIG,"
        " ./uploader.yaml, /etc/se3-uploader/uploader.yaml)",
    )  # fmt: skip

    run = commands.add_parser("run", parents=[configured], help="upload, in the foreground")
    run.add_argument(
        "--once", action="store_true",
        help="deliver what the database holds now and exit: 0 all delivered, 75 something is"
        " still pending, 1 something is dead or lost",
    )  # fmt: skip
    upload = commands.add_parser(
        "backfill", parents=[configured], help="upload a range of time, once"
    )
    _add_backfill(upload)
    check = commands.add_parser(
        "check", parents=[configured], help="try every part for real; no event is sent"
    )
    check.add_argument("--no-network", action="store_true", help="only what needs no connection")
    check.add_argument(
        "--show-payload", action="store_true",
        help="show the newest event and the status report as they would be sent, pictures"
        " shortened: personal data",
    )  # fmt: skip
    look = commands.add_parser(
        "status", parents=[configured], help="are the events arriving, and if not, why not"
    )
    look.add_argument("--json", action="store_true", help="for machines")
    letters = commands.add_parser("outbox", help="dead letters: look, send again, give up")
    _add_outbox(letters, configured)
    database = commands.add_parser("source", help="look into a database, and propose a mapping")
    _add_source(database, configured)
    _add_receive(commands)
    _add_demo(commands)
    return words


def _add_backfill(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--since", required=True, metavar="T", help="first moment, e.g. -2d")
    parser.add_argument("--until", required=True, metavar="T", help="first moment after the range")
    parser.add_argument(
        "--endpoint", action="append", metavar="NAME", help="only to this one; may be repeated"
    )
    parser.add_argument("--rate", type=float, metavar="N", help="at most N events per second")
    parser.add_argument(
        "--resend", action="store_true", help="also what was delivered, under the same keys"
    )
    parser.add_argument(
        "--pictures", choices=("keep", "strip"), default="keep", help="strip: send none"
    )
    parser.add_argument("--dry-run", action="store_true", help="only say what would be done")
    parser.add_argument("--json", action="store_true", help="JSON, one object a line")


def _add_outbox(parser: argparse.ArgumentParser, configured: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    wanted = argparse.ArgumentParser(add_help=False, parents=[configured])
    wanted.add_argument("ids", metavar="ID", type=_id, nargs="*", help="as list shows them")
    wanted.add_argument("--endpoint", metavar="NAME", help="only of this endpoint")
    wanted.add_argument("--reason", metavar="TEXT", help="only where the reason holds this text")
    wanted.add_argument("--since", metavar="T", type=_time, help="ended then or later, e.g. -2d")
    wanted.add_argument("--until", metavar="T", type=_time, help="ended before then")
    add = commands.add_parser
    found = add("list", parents=[wanted], help="what was not delivered, or not whole, and why")
    found.add_argument("--json", action="store_true", help="for machines")
    show = add("show", parents=[wanted], help="all about dead letters, payloads masked")
    show.add_argument("--json", action="store_true", help="for machines")
    show.add_argument("--payload", action="store_true", help="names and ids too, and with --json"
                      " the pictures")  # fmt: skip
    retry = add("retry", parents=[wanted], help="send dead letters again, under the same keys")
    discard = add("discard", parents=[wanted], help="give dead letters up: counted as lost")
    discard.add_argument(
        "--person", metavar="ID", help="erase what the outbox keeps about a person; - reads the id"
        " from the standard input, where no list of processes shows it",
    )  # fmt: skip
    for change in (retry, discard):
        change.add_argument("--yes", action="store_true", help="do not ask")


def _add_source(parser: argparse.ArgumentParser, configured: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    look = commands.add_parser(
        "inspect", parents=[configured], help="list tables with their rows, and propose a mapping"
    )
    look.add_argument(
        "url", nargs="?", type=_url, metavar="URL", help="of the database (default: source.url"
        " of uploader.yaml, which keeps a password out of the list of processes)",
    )  # fmt: skip


def _add_receive(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    receive = commands.add_parser("receive", help="a test platform with a page to look at")
    receive.add_argument("--host", default="127.0.0.1", help="address to listen on")
    receive.add_argument("--port", type=_port, default=9528, help="0: any free one")
    receive.add_argument("--dir", help="where to store what arrives (default: a temporary folder)")
    receive.add_argument(
        "--fail", type=_rate, default=0.0, metavar="RATE", help="answer this share with 503, 0 to 1"
    )
    receive.add_argument(
        "--delay", type=_delay, default=0, metavar="MS", help="wait before each answer"
    )
    receive.add_argument(
        "--status", type=_code, metavar="CODE", help="answer everything with CODE, 200 to 599"
    )


def _add_demo(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    demo = commands.add_parser("demo", help="box, uploader and platform on this machine")
    demo.add_argument(
        "--events", type=_count, metavar="N",
        help="end after N events: 0 only if all arrived intact",
    )  # fmt: skip
    demo.add_argument("--port", type=_port, default=9528, help="of the test platform's page")


def _rate(text: str) -> float:
    return _between(0, 1, text, float, "a share between 0 and 1, e.g. 0.2")


def _port(text: str) -> int:
    return _between(0, 65535, text, int, "a port between 0 and 65535")


def _delay(text: str) -> int:
    return _between(0, 600_000, text, int, "milliseconds, at most 600000")


def _code(text: str) -> int:
    return _between(200, 599, text, int, "an HTTP status between 200 and 599")


def _count(text: str) -> int:
    return _between(1, MOST_IN_DEMO, text, int, f"a number between 1 and {MOST_IN_DEMO}")


def _between(
    least: float, most: float, text: str, kind: Callable[[str], _Number], allowed: str
) -> _Number:
    """Read a number; argparse tells what is allowed where it is another."""
    try:
        number = kind(text)
    except ValueError:
        number = None
    if number is None or not least <= number <= most:
        raise argparse.ArgumentTypeError(f"{text}: allowed is {allowed}")
    return number


def _id(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) < 2**63:
        raise argparse.ArgumentTypeError(f"{text} is no id, outbox list shows them")
    return int(text)


def _time(text: str) -> float:
    try:
        return times.parse_time(text, time.time()) / 1000
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text} {error}") from None


def _url(text: str) -> str:
    try:
        FORMATS["source-url"](text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def joined_times(words: Sequence[str]) -> List[str]:
    """Join `--since -2d` to `--since=-2d`: argparse takes -2d for an option of its own."""
    joined: List[str] = []
    for word in words:
        if joined and joined[-1] in ("--since", "--until") and times.RELATIVE.fullmatch(word):
            word = f"{joined.pop()}={word}"
        joined.append(word)
    return joined
