"""The receiver over HTTP: the two POSTs of the protocol, and the page that shows what came."""

from __future__ import annotations

import ipaddress
import random
import sqlite3
import threading
import time
from dataclasses import dataclass
from typing import Any, Callable, Dict, Optional, Tuple
from urllib.parse import urlsplit

from flask import Flask, Response, abort, jsonify, render_template, request
from werkzeug.exceptions import HTTPException, NotFound

from . import intake
from .store import Store
from .view import event_card, event_details, gateway_card

_CARDS = 60
_RATE_SECONDS = 60
_GATEWAYS = 20
_REPORTS = 90
_IMAGES = (
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"GIF8", "image/gif"),
    (b"BM", "image/bmp"),
)
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self';"
        " connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


@dataclass(frozen=True)
class Trouble:
    """How the receiver misbehaves on purpose, for an integrator to watch the uploader cope."""

    fail: float = 0.0
    """The fraction of POSTs, 0 to 1, answered with 503."""
    delay_ms: int = 0
    """The wait before each answer to a POST."""
    status: Optional[int] = None
    """The HTTP status of every answer to a POST; unless it is 2xx nothing is stored."""


def create_app(store: Store, trouble: Trouble, stopping: threading.Event, local: bool) -> Flask:
    """The WSGI application; ``stopping`` ends its waits, ``local``: only loopback names may ask."""
    app = Flask(__name__)
    app.url_map.merge_slashes = False  # no redirects: they would carry a report elsewhere

    @app.before_request
    def own_visitors_only() -> None:
        """A page of another site must neither read (DNS rebinding) nor write here."""
        if local and not _is_loopback(request.host):
            abort(403, "The receiver listens on this machine only, under localhost or 127.0.0.1.")
        origin = request.headers.get("Origin")
        if origin is not None and origin.partition("://")[2] != request.host:
            abort(403, "Another site's page may not ask here.")

    @app.after_request
    def harden(response: Response) -> Response:
        response.headers.update(_HEADERS)
        response.headers["Cache-Control"] = "no-store"
        return response

    @app.errorhandler(HTTPException)
    def plain(error: HTTPException) -> Response:
        answer = Response(f"{error.description}\n", error.code, mimetype="text/plain")
        answer.headers.extend(
            (name, value) for name, value in error.get_headers() if name == "Allow"
        )
        return answer

    @app.errorhandler(OverflowError)
    def no_such_number(_: OverflowError) -> Response:
        return plain(NotFound("There is no event of this number."))

    @app.errorhandler(sqlite3.OperationalError)
    def not_stored(error: sqlite3.OperationalError) -> Tuple[Response, int]:
        return jsonify(status=1, message=f"the receiver cannot use its file: {error}"), 503

    @app.post("/HistoryEvent")
    def history_event() -> Tuple[Response, int]:
        return _receive("history_event", store.add_event, store, trouble, stopping)

    @app.post("/DeviceStatus")
    def device_status() -> Tuple[Response, int]:
        return _receive("device_status", store.add_status, store, trouble, stopping)

    @app.get("/")
    def page() -> str:
        return render_template("index.html", cards=map(event_card, store.latest_events(_CARDS)))

    @app.get("/api/feed")
    def feed() -> Response:
        return jsonify(_feed(store))

    @app.get("/api/event/<int:event_id>")
    def details(event_id: int) -> Response:
        report = store.event(event_id)
        if report is None:
            abort(404, "This event is not stored (any more).")
        return jsonify(event_details(report))

    @app.get("/picture/<int:event_id>/<field>")
    def picture(event_id: int, field: str) -> Response:
        content = store.picture(event_id, field)
        if content is None:
            abort(404, "There is no such picture.")
        return _picture(content)

    return app


def image_type(content: bytes) -> Optional[str]:
    """The media type of a picture by its first bytes, None where it is none that browsers show."""
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return "image/webp"
    return next((name for magic, name in _IMAGES if content.startswith(magic)), None)


def _receive(
    kind: str, add: Callable[..., None], store: Store, trouble: Trouble, stopping: threading.Event
) -> Tuple[Response, int]:
    """Answer one POST as the protocol document's receiver does, or wrongly where told to."""
    stopping.wait(trouble.delay_ms / 1000)
    if random.random() < trouble.fail:  # noqa: S311 (no secret hangs on it)
        store.add_turned_away()
        return jsonify(status=1, message="failing on purpose (--fail)"), 503
    good = trouble.status or 200
    if not 200 <= good < 300:
        store.add_turned_away()
        return jsonify(status=1, message=f"answering {good} on purpose (--status)"), good
    try:
        if (request.content_length or 0) > intake.MAX_BODY:
            raise intake.Unreadable(413, intake.too_large())
        encoding = request.headers.get("Content-Encoding", "").strip().lower()
        body = intake.decompress(request.get_data(cache=False), encoding)
        payload = intake.parse(body)
    except intake.Unreadable as error:
        return jsonify(status=1, message=str(error)), error.status
    reasons = intake.objections(kind, payload)
    add(payload, reasons, request.headers.get("Idempotency-Key") or None, body)
    if reasons:
        return jsonify(status=1, message="the schema is broken", reasons=reasons), 422
    return jsonify(status=0, message="SUCCESS"), good


def _feed(store: Store) -> Dict[str, Any]:
    """What is new on the page since the cursor it hands in; everything where it has none."""
    asked = request.args
    before = asked.get("before", 0, int)
    cursor, now = store.cursor(), time.time_ns() // 1_000_000
    known = asked.get("store") == store.token
    since = asked.get("since", 0, int) if known else 0
    answer: Dict[str, Any] = {
        "store": store.token,
        "cursor": cursor,
        "now": now,
        "counts": store.counts(),
        "rate": store.rate(_RATE_SECONDS, now),
    }
    if known and since == cursor and not before:
        return answer
    events = store.latest_events(
        _CARDS + 1,
        since=0 if before else since,
        before=before,
        words=asked.get("words", ""),
        person_type=asked.get("person_type", 0, int),
        refused=asked.get("refused") == "1",
    )
    answer["events"] = [event_card(report) for report in events[:_CARDS]]
    answer["more"] = len(events) > _CARDS
    if not before and (not since or store.has_new_statuses(since)):
        reports = store.latest_statuses(_GATEWAYS, _REPORTS)
        answer["gateways"] = [gateway_card(of_one) for of_one in reports]
    return answer


def _picture(content: bytes) -> Response:
    media_type = image_type(content)
    response = Response(content, mimetype=media_type or "application/octet-stream")
    if media_type is None:
        response.headers["Content-Disposition"] = "attachment"
    return response


def _is_loopback(host: str) -> bool:
    """Whether a Host header names this machine."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
