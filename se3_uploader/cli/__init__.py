"""The command line: arguments, wording, exit codes. The only place that prints or exits."""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
import threading
import time
import traceback
from typing import Callable, Dict, List, Optional, Sequence, TypeVar

from .. import __version__, config, log
from . import backfill, outbox, source, times

OK, PROBLEM, USAGE, TEMPORARY, CONFIG = 0, 1, 2, 75, 78
"""Exit codes: good; a problem was found; wrong usage; try again later (EX_TEMPFAIL); the
configuration is wrong (EX_CONFIG)."""
MOST_IN_DEMO = 20_000
"""Events: the receiver keeps that many with their pictures."""
_Number = TypeVar("_Number", int, float)


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Run one command; returns its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal that knows no Chinese
    words = sys.argv[1:] if arguments is None else list(arguments)
    options = _parser().parse_args(_with_times(words))
    try:
        code = _COMMANDS[options.command](options)
        sys.stdout.flush()
        return code
    except config.ConfigError as error:
        for problem in error.problems:
            print(problem, file=sys.stderr)
        return CONFIG
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Whoever read our output, head perhaps, has seen enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except Exception as error:
        print(f"se3-uploader: {_explained(error)}", file=sys.stderr)
        return TEMPORARY if _is_foreseen(error) else PROBLEM


def _with_times(words: Sequence[str]) -> List[str]:
    """Join `--since -2d` to `--since=-2d`: argparse takes -2d for an option of its own."""
    joined: List[str] = []
    for word in words:
        if joined and joined[-1] in ("--since", "--until") and times.RELATIVE.fullmatch(word):
            word = f"{joined.pop()}={word}"
        joined.append(word)
    return joined


def _is_foreseen(error: BaseException) -> bool:
    from ..outbox import OutboxError
    from ..source import SourceError

    return isinstance(error, (OSError, OutboxError, SourceError))


def _explained(error: BaseException) -> str:
    """Say what happened; of a mistake of our own only where, since its text may be personal."""
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}; look at its owner, its mode and its disk"
    if _is_foreseen(error):
        return str(error)
    steps = traceback.extract_tb(error.__traceback__)
    places = [f"{os.path.basename(s.filename)}:{s.lineno}" for s in steps[-5:]]
    return (
        f"stopped by a mistake in the program, {type(error).__name__} at {' > '.join(places)};"
        f" nothing is lost. Please report this line, with the version {__version__}"
    )


def _tell_of_thread(failed: threading.ExceptHookArgs) -> None:
    """Log what ended a thread, in place of Python's traceback, which repeats its words."""
    if failed.exc_value is not None and failed.thread is not None:
        log.error(f"{failed.thread.name}: {_explained(failed.exc_value)}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="se3-uploader",
        description="Uploads every event of an SE3 AI mini machine, and the state of the box,"
        " to a platform. Nothing is lost.",
    )
    parser.add_argument("--version", action="version", version=f"se3-uploader {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
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
    backfill.add_arguments(upload)
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
    outbox.add_arguments(letters, configured)
    database = commands.add_parser("source", help="look into a database, and propose a mapping")
    source.add_arguments(database, configured)
    _add_receive(commands)
    _add_demo(commands)
    return parser


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


def _load(options: argparse.Namespace) -> config.Config:
    return config.load(config.find(options.config))


def _run(options: argparse.Namespace) -> int:
    from .. import agent
    from ..lock import Lock, daemon_lock

    loaded = _load(options)
    log.setup(loaded.log.level, loaded.log.format)
    threading.excepthook = _tell_of_thread
    lock, present = Lock(loaded.outbox.path), Lock(daemon_lock(loaded.outbox.path))
    if options.once:
        holder = lock.acquire("once")
        if holder is not None:
            log.warning(f"the {holder.role} (pid {holder.pid}) delivers from this outbox already")
            return TEMPORARY
        return agent.run_once(loaded)
    holder = present.acquire("daemon")
    if holder is not None:
        log.error(f"another daemon (pid {holder.pid}) delivers from this outbox already")
        return PROBLEM
    while True:
        holder = lock.acquire("daemon")
        if holder is None:
            return agent.Daemon(loaded).run()
        log.info(f"waiting for the {holder.role} (pid {holder.pid}) to hand over")
        time.sleep(0.5)


def _backfill(options: argparse.Namespace) -> int:
    try:
        return backfill.run(options, _load(options))
    except backfill.UsageError as error:
        print(f"se3-uploader backfill: {error}", file=sys.stderr)
        return USAGE


def _check(options: argparse.Namespace) -> int:
    """Print a line for each part; 1 where one does not work."""
    from .. import check
    from . import terminal

    out, failed = terminal.console(), False
    colours = {check.OK: terminal.GOOD, check.WARN: terminal.WORRYING, check.FAIL: terminal.BAD}
    for finding in check.run(_load(options), network=not options.no_network):
        failed |= finding.level == check.FAIL
        advice = f" -> {finding.advice}" if finding.advice else ""
        out.print(f"{finding.level:5}", style=colours.get(finding.level, ""), end="")
        out.print(f"{finding.part}: {finding.said}{advice}", soft_wrap=True)
        if options.show_payload and finding.payload is not None:
            payload = json.dumps(finding.payload, ensure_ascii=False, indent=2)
            out.print(payload, soft_wrap=True)
    return PROBLEM if failed else OK


def _status(options: argparse.Namespace) -> int:
    """Print the status; 0 however things stand, since the answer is in what is printed."""
    from ..status import collect

    now = time.time()
    found = collect(_load(options), now)
    if options.json:
        print(json.dumps(found, ensure_ascii=False, indent=2))
        return OK
    from . import status, terminal

    out = terminal.console()
    answer, *figures = status.render(found, now)
    out.print(answer, soft_wrap=not out.is_terminal)  # head -1 gets the whole of it
    for part in figures:
        out.print(part)
    return OK


def _outbox(options: argparse.Namespace) -> int:
    return outbox.run(options, _load(options))


def _source(options: argparse.Namespace) -> int:
    return source.run(options.url or _load(options).source.url, print)


def _receive(options: argparse.Namespace) -> int:
    from .. import receiver

    try:
        receiver.serve(
            options.host, options.port, options.dir,
            fail=options.fail, delay_ms=options.delay, status=options.status, ready=print,
        )  # fmt: skip
    except receiver.ReceiverError as error:
        print(error, file=sys.stderr)
        return PROBLEM
    return OK


def _demo(options: argparse.Namespace) -> int:
    from .. import demo

    return demo.run_demo(options.events, options.port, lambda line: print(line, flush=True))


_COMMANDS: Dict[str, Callable[[argparse.Namespace], int]] = {
    "run": _run,
    "backfill": _backfill,
    "check": _check,
    "status": _status,
    "outbox": _outbox,
    "source": _source,
    "receive": _receive,
    "demo": _demo,
}
