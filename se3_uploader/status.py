"""What status --json says: the outbox, the source and whoever delivers, as they are now.

Works while the daemon runs or not, before its first start, and never holds it up.
"""

from __future__ import annotations

import os
from datetime import datetime
from typing import Any, Dict, List, Optional, Tuple

from . import __version__, lock, policy
from .config import Config, Endpoint
from .outbox import figures
from .outbox.figures import EndpointFigures, Figures
from .source import Key, Source, SourceError, open_source
from .source.rows import RowMaker

COUNTED = 1_000_000
"""Events behind that are counted; more are told as so many."""
THREE_ROWS = 64 * 1024**2
"""Bytes, more than three rows without pictures have."""
EXPIRY = 30 * 86400.0
"""Seconds before the end of a platform's certificate from which it is worth a word."""
NOT_CONFIGURED = "it is no longer in uploader.yaml, so nothing is sent"
"""Why an endpoint is paused that has pending or dead deliveries, but stands nowhere any more."""

Status = Dict[str, Any]


def collect(config: Config, now: float) -> Status:
    """Gather the status, of the shape the contract gives ("status --json"); now: epoch seconds.

    Besides the contract's keys there are daemon.delivers, source.engine, for each endpoint
    configured, since, dead_reason, rate_per_s, deleted_in_s and certificate_expires, and in outbox
    copied_bytes, free_bytes and min_free_bytes. Raises OutboxError where there is an outbox that
    cannot be read.
    """
    found = figures.read(config.outbox.path, config.source.name, now)
    source, deleted_in = _source(config, found)
    return {
        "version": __version__,
        "daemon": _daemon(config.outbox.path),
        "source": source,
        "endpoints": _endpoints(config, found, deleted_in, now),
        "outbox": _outbox(config, found),
    }


def _daemon(path: str) -> Dict[str, Any]:
    """Tell whether the daemon is there, and who delivers: it, once, a backfill, or nobody."""
    daemon, deliverer = lock.holder(lock.daemon_lock(path)), lock.holder(path)
    return {
        "running": daemon is not None,
        "pid": daemon.pid if daemon else None,
        "since": _iso(daemon.since) if daemon else None,
        "delivers": deliverer.role if deliverer else None,
    }


def _source(config: Config, found: Figures) -> Tuple[Dict[str, Any], Dict[str, float]]:
    """Tell where the endpoint that is furthest behind stands, and how many events follow.

    The second value is that of _deleted_in.
    """
    deleted_in: Dict[str, float] = {}
    status: Dict[str, Any] = {
        "name": config.source.name,
        "engine": config.source.url.partition(":")[0],
        "position": None,
        "newest": None,
        "behind": None,
        "generation": found.generation,
        "error": None,
    }
    try:
        source = open_source(config.source)
        try:
            status["newest"] = source.newest()
            status["position"], status["behind"] = _furthest_behind(config, found, source)
            deleted_in = _deleted_in(config, found, source)
        finally:
            source.close()
    except SourceError as error:
        status["error"] = str(error)
    return status, deleted_in


def _deleted_in(config: Config, found: Figures, source: Source) -> Dict[str, float]:
    """Endpoint -> seconds until the source deletes the oldest event neither sent nor copied.

    The oldest event that the source holds is older by so much, and events are taken to be deleted
    as fast as they come. Known only where the source does delete: the first event that the outbox
    remembers is gone.
    """
    moment = RowMaker(config.source).moment
    oldest = source.look(None, 1).refs
    seconds = {}
    for endpoint in found.endpoints:
        waiting = source.look(endpoint.position, 1).refs if endpoint.begun else []
        at_risk = endpoint.at_risk or (waiting[0].key if waiting else None)
        if not oldest or endpoint.first is None or at_risk is None:
            continue
        rows = source.rows([endpoint.first, at_risk, oldest[0].key], (), THREE_ROWS).rows
        moments = {row.ref.key: moment(row.values) for row in rows}
        begin, end = moments.get(oldest[0].key), moments.get(at_risk, 0)
        if endpoint.first not in moments and begin is not None and end is not None:
            seconds[endpoint.name] = max(0.0, (end - begin) / 1000)
    return seconds


def _furthest_behind(config: Config, found: Figures, source: Source) -> Tuple[Optional[Key], int]:
    by_name = {endpoint.name: endpoint for endpoint in found.endpoints}
    positions = set()
    for endpoint in config.history_event.endpoints:
        known = by_name.get(endpoint.name)
        if known is not None and known.begun:
            positions.add(known.position)
        elif config.source.start == "earliest":
            positions.add(None)
    behind = {position: source.count(position, COUNTED) for position in positions}
    position = max(behind, key=lambda position: behind[position], default=None)
    return position, behind.get(position, 0)


def _endpoints(
    config: Config, found: Figures, deleted_in: Dict[str, float], now: float
) -> List[Dict[str, Any]]:
    by_name = {endpoint.name: endpoint for endpoint in found.endpoints}
    configured = {endpoint.name for endpoint in config.endpoints}
    shown = [by_name.get(endpoint.name) or _new(endpoint) for endpoint in config.endpoints]
    shown += [
        endpoint
        for endpoint in found.endpoints
        if endpoint.name not in configured and (endpoint.pending or endpoint.dead)
    ]
    return [
        _endpoint(endpoint, endpoint.name in configured, deleted_in.get(endpoint.name), now)
        for endpoint in shown
    ]


def _new(endpoint: Endpoint) -> EndpointFigures:
    """Make the figures of an endpoint that nothing was sent to yet."""
    return EndpointFigures(
        name=endpoint.name, kind=endpoint.kind, url=endpoint.shown_url, state=policy.OK, since=None,
        error=None, next_attempt=None, certificate=None, pending=0, delivered=0, dead=0, lost=0,
        last_delivered=None, oldest_pending=None, dead_reason=None, recent=0, begun=0,
        position=None, first=None, at_risk=None,
    )  # fmt: skip


def _endpoint(
    found: EndpointFigures, configured: bool, deleted_in: Optional[float], now: float
) -> Dict[str, Any]:
    oldest = found.oldest_pending
    return {
        "name": found.name,
        "kind": found.kind,
        "url": found.url,
        "state": found.state if configured else policy.PAUSED,
        "configured": configured,
        "since": _iso(found.since),
        "pending": found.pending,
        "delivered": found.delivered,
        "dead": found.dead,
        "dead_reason": found.dead_reason,
        "lost": found.lost,
        "oldest_pending_s": None if oldest is None else round(max(0.0, now - oldest), 1),
        "deleted_in_s": deleted_in,
        "last_delivered": _iso(found.last_delivered),
        "rate_per_s": round(found.recent / figures.RATE_OVER, 2),
        "last_error": found.error if configured else NOT_CONFIGURED,
        "next_attempt": _iso(found.next_attempt) if configured else None,
        "certificate_expires": _iso(found.certificate),
    }


def _outbox(config: Config, found: Figures) -> Dict[str, Any]:
    return {
        "path": config.outbox.path,
        "bytes": found.bytes,
        "max_bytes": config.outbox.max_size,
        "copied_bytes": found.copied_bytes,
        "free_bytes": free_bytes(config.outbox.path),
        "min_free_bytes": config.outbox.min_free_disk,
    }


def free_bytes(path: str) -> Optional[int]:
    """Bytes that others than root may still use on the disk where path is, or will be."""
    try:
        disk = os.statvfs(nearest_folder(path))
    except OSError:
        return None
    return disk.f_bavail * disk.f_frsize


def nearest_folder(path: str) -> str:
    """The folder of a path or, where that is not there yet, the nearest one above it."""
    folder = os.path.dirname(os.path.abspath(path))
    while not os.path.isdir(folder) and folder != os.path.dirname(folder):
        folder = os.path.dirname(folder)
    return folder


def _iso(moment: Optional[float]) -> Optional[str]:
    """Epoch seconds as ISO 8601 in the local zone, to the second."""
    if moment is None:
        return None
    return datetime.fromtimestamp(moment).astimezone().isoformat(timespec="seconds")
