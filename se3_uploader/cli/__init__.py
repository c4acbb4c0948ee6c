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
from typing import Callable, Dict, Optional, Sequence

from .. import __version__, config, log
from . import arguments

OK, PROBLEM, USAGE, TEMPORARY, CONFIG = 0, 1, 2, 75, 78
"""Exit codes: good; a problem was found; wrong usage; try again later (EX_TEMPFAIL); the
configuration is wrong (EX_CONFIG)."""


def main(words: Optional[Sequence[str]] = None) -> int:
    """Run one command; returns its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal that knows no Chinese
    words = sys.argv[1:] if words is None else words
    options = arguments.parser().parse_args(arguments.joined_times(words))
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
    from . import backfill

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
    from . import outbox

    return outbox.run(options, _load(options))


def _source(options: argparse.Namespace) -> int:
    from . import source

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
