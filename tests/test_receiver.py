"""The test receiver over real HTTP on loopback: what it answers to a report, and what it keeps."""

from __future__ import annotations

import gzip
import json
import threading
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List

import pytest
import requests

from se3_uploader.receiver import Receiver
from se3_uploader.receiver.intake import MAX_BODY, Unreadable, decompress
from tests.receiver_samples import event, post, status

SUCCESS = {"status": 0, "message": "SUCCESS"}


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[Receiver]:
    """A receiver that runs for one test."""
    with Receiver(dir=tmp_path / "received") as running:
        yield running


def until(holds: Callable[[], bool], seconds: float = 10) -> None:
    """Wait for a condition; fail when it does not come."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "waited in vain"
        threading.Event().wait(0.01)


def test_an_event_is_answered_as_the_protocol_says_and_kept_whole(receiver: Receiver) -> None:
    """Every field comes back from the store as it was sent, pictures and odd names included."""
    sent = event(
        identity_name='O\'Neil "王芳" 👩‍🦰 \u0001\u0000</script>',
        ext_data={"door": {"open": [1, 2.5, None, True]}, "empty": ""},
    )
    answer = post(receiver, sent, Idempotency_Key="k1")
    assert (answer.status_code, answer.json()) == (200, SUCCESS)
    (stored,) = receiver.store.events()
    assert (stored.key, stored.payload, stored.reasons) == ("k1", sent, [])
    assert abs(stored.received_at / 1000 - time.time()) < 30


@pytest.mark.parametrize(
    "sent",
    [
        event(reg_pic=None, ext_data={"spot_pic": None}),
        event(reg_pic="", ext_data={"spot_pic": ""}),
        event(reg_pic="abc", ext_data={"spot_pic": "QUJD="}),  # no whole base64: the schema allows
        event(ext_data={"person_type": None, "device_ip": None, "ep_id": None}),
        event(score=1, timestamp=1560408984),
        event(identity_id="", identity_name="", group_name=""),
    ],
)
def test_what_the_schema_allows_is_accepted_unchanged(
    receiver: Receiver, sent: Dict[str, Any]
) -> None:
    """Optional fields may be absent or empty, and the store still gives back exactly what came."""
    assert post(receiver, sent).status_code == 200
    assert [stored.payload for stored in receiver.store.events()] == [sent]


REFUSED = [
    ([], ["the body: must be an object, is a list"]),
    (None, ["the body: must be an object, is null"]),
    (event(identity_id=None), ["identity_id: is missing"]),
    (event(identity_id=13028), ["identity_id: must be text, is a whole number"]),
    (event(timestamp=1.5), ["timestamp: must be a whole number, is a number"]),
    (event(timestamp=True), ["timestamp: must be a whole number, is true or false"]),
    (event(timestamp=-1), ["timestamp: must be at least 0"]),
    (event(score="0.16"), ["score: must be a number, is text"]),
    (event(reg_pic="data:image/jpeg;base64,AAAA"), ["reg_pic: must be base64"]),
    (event(ext_data={"spot_pic": "a b"}), ["ext_data.spot_pic: must be base64"]),
    (event(ext_data={"person_type": 6}), ["ext_data.person_type: must be one of 1, 2, 3, 4, 5"]),
    (event(ext_data={"device_type": 1}), [
        "ext_data.device_type: must be one of 0, 1, 2, 3, 4",
        "ext_data.device_type: must be text, is a whole number",
    ]),
    (event(ext_data={"dev_sno": ""}), ["ext_data.dev_sno: must not be empty"]),
    (event(ext_data={"dev_sno": None, "box_fiqa_info": None, "grab_fiqa_info": "{}"}), [
        "ext_data.box_fiqa_info: is missing",
        "ext_data.dev_sno: is missing",
        "ext_data.grab_fiqa_info: must be an object, is text",
    ]),
    ({"ext_data": 5}, [
        "ext_data: must be an object, is a whole number",
        "group_name: is missing",
        "identity_id: is missing",
        "identity_name: is missing",
        "score: is missing",
        "timestamp: is missing",
    ]),
]  # fmt: skip


@pytest.mark.parametrize(("sent", "reasons"), REFUSED)
def test_a_broken_event_is_refused_with_every_reason(
    receiver: Receiver, sent: Any, reasons: List[str]
) -> None:
    """422 names each broken rule, and the event is kept apart from the accepted ones."""
    answer = post(receiver, sent)
    assert answer.status_code == 422
    assert answer.json() == {"status": 1, "message": "the schema is broken", "reasons": reasons}
    (refused,) = receiver.store.events(refused=True)
    assert (refused.payload, refused.reasons) == (sent, reasons)
    assert list(receiver.store.events()) == []


def test_a_reason_never_holds_a_value(receiver: Receiver) -> None:
    """Reasons end up in the logs of whoever sent the event, and values are personal."""
    sent = event(
        identity_id=["SECRET"],
        score="SECRET",
        reg_pic="SECRET!",
        ext_data={"person_type": "SECRET", "dev_sno": {"SECRET": 1}},
    )
    answer = post(receiver, sent)
    assert len(answer.json()["reasons"]) >= 5
    assert "SECRET" not in answer.text


@pytest.mark.parametrize(
    ("sent", "reasons"),
    [
        (status(), None),
        (status(sub_devices=[], dev_sno=None), None),
        (status(gateway_status="up"), ["gateway_status: must be one of online, offline"]),
        (status(gateway_ext_data={"cpu_usage": 101, "memory_size": 0}), [
            "gateway_ext_data.cpu_usage: must be at most 100",
            "gateway_ext_data.memory_size: must be more than 0",
        ]),
        (status(gateway_ext_data={"gateway_mac": "E0:A5"}), [
            "gateway_ext_data.gateway_mac: must match ^([0-9a-f]{2}:){5}[0-9a-f]{2}$"
        ]),
        (status(sub_devices=[{"ep_id": "x__1", "ep_ip": "1", "ep_status": "online"}]), [
            "sub_devices[0].ep_ext_data: is missing",
            "sub_devices[0].ep_type: is missing",
        ]),
    ],
)  # fmt: skip
def test_status_reports_are_held_against_their_schema(
    receiver: Receiver, sent: Dict[str, Any], reasons: List[str]
) -> None:
    """A good report is accepted, a broken one refused with its reasons; both are stored."""
    answer = post(receiver, sent, "/DeviceStatus")
    assert (answer.status_code, answer.json().get("reasons")) == (422 if reasons else 200, reasons)
    (stored,) = receiver.store.statuses(refused=reasons is not None)
    assert stored.payload == sent


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"status=0",
        b'{"score": NaN}',
        b'{"score": -Infinity}',
        b'{"score": 1e400}',
        b'{"identity_name": "\\ud800"}',
        b'{"identity_name": "\xff"}',
        b'{"ext_data": ' + b"[" * 600 + b"]" * 600 + b"}",
        b"[" * 100_000,
    ],
)
def test_what_is_no_json_is_answered_400_and_not_stored(receiver: Receiver, body: bytes) -> None:
    """NaN, infinity, lone surrogates, broken UTF-8 and absurd nesting are no JSON here."""
    answer = post(receiver, body)
    assert (answer.status_code, answer.json()["status"]) == (400, 1)
    assert receiver.store.cursor() == 0


def test_the_same_key_again_is_accepted_counted_and_stored_once(receiver: Receiver) -> None:
    """At-least-once delivery shows as repeats; one whose body differs is told apart."""
    for score in (0.5, 0.5, 0.75):
        assert post(receiver, event(score=score), Idempotency_Key="k").json() == SUCCESS
    (stored,) = receiver.store.events()
    assert (stored.payload["score"], stored.repeats, stored.differing) == (0.5, 2, 1)
    counts = receiver.store.counts()
    assert (counts["accepted"], counts["repeats"], counts["differing"]) == (1, 2, 1)


def test_a_refused_event_may_come_again_mended(receiver: Receiver) -> None:
    """A refusal does not use up the key; the refused one is shown once however often it came."""
    for score in ("bad", "bad", 0.5):
        post(receiver, event(score=score), Idempotency_Key="k")
    (accepted,), (refused,) = receiver.store.events(), receiver.store.events(refused=True)
    assert (accepted.repeats, refused.repeats) == (0, 1)


def test_without_a_key_nothing_is_a_repeat(receiver: Receiver) -> None:
    """Two events that look the same may be two events."""
    for _ in range(2):
        post(receiver, event())
    assert receiver.store.counts()["accepted"] == 2


def test_a_key_that_comes_many_times_at_once_is_stored_once(receiver: Receiver) -> None:
    """The receiver's own threads do not get in each other's way."""
    with ThreadPoolExecutor(8) as pool:
        answers = pool.map(lambda n: post(receiver, event(), Idempotency_Key=str(n % 5)), range(40))
        assert {answer.status_code for answer in answers} == {200}
    counts = receiver.store.counts()
    assert (counts["accepted"], counts["repeats"], counts["differing"]) == (5, 35, 0)


def test_gzip_is_understood(receiver: Receiver) -> None:
    """An event sent with compression: gzip is the same event."""
    body = gzip.compress(json.dumps(event()).encode())
    assert post(receiver, body, Content_Encoding="gzip").json() == SUCCESS
    assert next(receiver.store.events()).payload == event()


@pytest.mark.parametrize(
    ("body", "encoding", "code"),
    [
        (b"{}", "gzip", 400),
        (gzip.compress(b"{}", mtime=0)[:-4], "gzip", 400),
        (gzip.compress(b"{}", mtime=0) + b"more", "gzip", 400),
        (b"{}", "br", 415),
    ],
)
def test_a_broken_encoding_is_refused(
    receiver: Receiver, body: bytes, encoding: str, code: int
) -> None:
    """What cannot be decompressed gets an answer that says so."""
    assert post(receiver, body, Content_Encoding=encoding).status_code == code


def test_a_gzip_bomb_is_not_blown_up(receiver: Receiver) -> None:
    """A body of a few MB that would become 1 GiB is answered 413 and costs bounded memory."""
    bomb = gzip.compress(bytes(16 * MAX_BODY), 1)
    tracemalloc.start()
    with pytest.raises(Unreadable) as refusal:
        decompress(bomb, "gzip")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert refusal.value.status == 413
    assert peak < 3 * MAX_BODY
    assert post(receiver, bomb, Content_Encoding="gzip").status_code == 413


def test_a_body_up_to_64_mib_is_read_and_a_larger_one_gets_its_413(receiver: Receiver) -> None:
    """The bound is exact, and the answer reaches a client that was still sending."""
    empty = json.dumps(event(reg_pic="")).encode()
    largest = empty.replace(b'"reg_pic": ""', b'"reg_pic": "%s"' % (b"A" * (MAX_BODY - len(empty))))
    assert len(largest) == MAX_BODY
    assert post(receiver, largest).status_code == 200
    assert post(receiver, largest + b" ").status_code == 413
    assert receiver.store.counts()["accepted"] == 1


def test_fail_answers_a_fraction_with_503_and_stores_the_rest(tmp_path: Path) -> None:
    """--fail 0.3 turns away about three of ten, and each POST is either stored or turned away."""
    with Receiver(dir=tmp_path, fail=0.3) as receiver, requests.Session() as session:
        url, body = receiver.url + "/HistoryEvent", json.dumps(event()).encode()
        codes = [session.post(url, body).status_code for _ in range(200)]
        counts = receiver.store.counts()
    assert set(codes) == {200, 503}
    assert 30 <= codes.count(503) <= 95  # six standard deviations
    assert (counts["accepted"], counts["turned_away"]) == (codes.count(200), codes.count(503))


def test_delay_holds_back_answers_to_reports_alone(tmp_path: Path) -> None:
    """--delay 300 makes a POST take that long; the page stays quick."""
    with Receiver(dir=tmp_path, delay_ms=300) as receiver:
        assert post(receiver, event()).elapsed.total_seconds() >= 0.3
        assert requests.get(receiver.url + "/api/feed", timeout=5).elapsed.total_seconds() < 0.25


def test_stop_does_not_wait_for_a_long_delay(tmp_path: Path) -> None:
    """A request held back by --delay is answered when the receiver stops."""
    receiver = Receiver(dir=tmp_path, delay_ms=60_000).start()
    workers = receiver._server.task_dispatcher
    with ThreadPoolExecutor(1) as pool:
        until(lambda: workers.active_count == 0)  # all threads are up and idle
        answer = pool.submit(post, receiver, event())
        until(lambda: workers.active_count == 1)
        began = time.monotonic()
        receiver.stop()
        assert answer.result().json() == SUCCESS
    assert time.monotonic() - began < 3


@pytest.mark.parametrize(("code", "stored"), [(202, 1), (401, 0), (429, 0), (500, 0)])
def test_status_answers_everything_with_one_code(tmp_path: Path, code: int, stored: int) -> None:
    """--status CODE is the answer to every report; only a 2xx code stores it."""
    with Receiver(dir=tmp_path, status=code) as receiver:
        assert post(receiver, event()).status_code == code
        assert post(receiver, status(), "/DeviceStatus").status_code == code
        assert len(list(receiver.store.events())) == len(list(receiver.store.statuses())) == stored
