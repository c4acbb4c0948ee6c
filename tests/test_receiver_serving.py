"""The test receiver as a server and a store: what it serves to whom, how it starts and stops."""

from __future__ import annotations

import os
import re
import signal
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, Iterator, List

import pytest
import requests

from se3_uploader.receiver import Receiver, ReceiverError, Store
from tests.receiver_samples import event, jpeg, post, status, text

SUCCESS = {"status": 0, "message": "SUCCESS"}


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[Receiver]:
    """A receiver that runs for one test."""
    with Receiver(dir=tmp_path / "received") as running:
        yield running


@pytest.mark.parametrize(
    ("content", "media_type"),
    [
        (jpeg(), "image/jpeg"),
        (b"\x89PNG\r\n\x1a\n...", "image/png"),
        (b"GIF89a...", "image/gif"),
        (b"RIFF\0\0\0\0WEBPVP8 ", "image/webp"),
        (b"BM......", "image/bmp"),
        (b"<svg onload=alert(1)>", "application/octet-stream"),
        (b"<html><script>alert(1)</script>", "application/octet-stream"),
        (b"%PDF-1.7", "application/octet-stream"),
    ],
)
def test_a_picture_is_served_as_an_image_only_where_it_is_one(
    receiver: Receiver, content: bytes, media_type: str
) -> None:
    """By its first bytes; anything else is a download that no browser runs."""
    post(receiver, event(ext_data={"spot_pic": text(content)}))
    answer = requests.get(receiver.url + "/picture/1/spot_pic", timeout=5)
    assert (answer.content, answer.headers["Content-Type"]) == (content, media_type)
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert (answer.headers.get("Content-Disposition") == "attachment") == (
        media_type == "application/octet-stream"
    )


@pytest.mark.parametrize(
    "path",
    [
        "/nothing",
        "/static/../app.py",
        "/static/..%2fapp.py",
        "/static/%2e%2e/%2e%2e/config.py",
        "/static//etc/passwd",
        "/picture/1/..%2f..%2freceived.db",
        "/picture/99/spot_pic",
        "/api/event/99",
        "/api/event/99999999999999999999",
        "/received.db",
    ],
)
def test_nothing_but_the_page_and_what_was_received_is_served(
    receiver: Receiver, path: str
) -> None:
    """No address leads to a file of the machine; the answer is a plain 404."""
    post(receiver, event())
    with socket.create_connection(("127.0.0.1", receiver.port)) as client:  # no tidying of the path
        client.sendall(f"GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n".encode())
        answer = b"".join(iter(lambda: client.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.0 404 ")
    assert b"Content-Type: text/plain" in answer


def test_a_wrong_method_is_answered_405(receiver: Receiver) -> None:
    """With the methods that are allowed, in plain text."""
    answer = requests.get(receiver.url + "/HistoryEvent", timeout=5)
    assert (answer.status_code, "POST" in answer.headers["Allow"]) == (405, True)
    assert answer.headers["Content-Type"].startswith("text/plain")
    assert requests.post(receiver.url + "/", timeout=5).status_code == 405


def test_the_page_shows_events_without_javascript_too(receiver: Receiver) -> None:
    """Names and pictures stand in its HTML, whatever came in them is escaped."""
    post(receiver, event(identity_name="</noscript><script>alert(1)</script>张伟"))
    page = requests.get(receiver.url + "/", timeout=5).text
    assert "张伟" in page
    assert "<script>alert" not in page
    (path,) = set(re.findall(r'src="(/picture/\d+/spot_pic)"', page))
    assert requests.get(receiver.url + path, timeout=5).status_code == 200


@pytest.mark.parametrize("path", ["/", "/static/page.js", "/api/feed", "/picture/1/reg_pic", "/no"])
def test_every_answer_is_hardened(receiver: Receiver, path: str) -> None:
    """A strict policy, no sniffing, no caching of faces, no embedding by other sites."""
    headers = requests.get(receiver.url + path, timeout=5).headers
    policy = headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';")
    assert "unsafe" not in policy
    assert "*" not in policy
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Cache-Control"] == "no-store"
    assert headers["Cross-Origin-Resource-Policy"] == "same-origin"


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("localhost:9528", True),
        ("127.0.0.1", True),
        ("[::1]:9528", True),
        ("evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("192.168.1.19:9528", False),
        ("[", False),
    ],
)
def test_on_loopback_only_loopback_names_are_answered(
    receiver: Receiver, host: str, allowed: bool
) -> None:
    """DNS rebinding: a page of another site must not read faces under a name of its own."""
    for method, path in (("GET", "/"), ("GET", "/api/feed"), ("POST", "/HistoryEvent")):
        answer = requests.request(method, receiver.url + path, headers={"Host": host}, timeout=5)
        assert (answer.status_code in (400, 403)) == (not allowed or method == "POST")
        assert allowed or "page" not in answer.text


def test_on_other_addresses_any_name_is_answered() -> None:
    """Bound to the network on purpose, the receiver does not know by which names it is reached."""
    with Receiver("0.0.0.0") as receiver:
        url = f"http://127.0.0.1:{receiver.port}/"
        assert requests.get(url, headers={"Host": "box.example"}, timeout=5).status_code == 200


def test_another_site_cannot_plant_events(receiver: Receiver) -> None:
    """A browser names the page that posts in Origin; only our own may."""
    assert post(receiver, event(), Origin="https://evil.example").status_code == 403
    assert post(receiver, event(), Origin="null").status_code == 403
    assert post(receiver, event(), Origin=receiver.url).status_code == 200


def test_a_port_in_use_is_a_clear_error(receiver: Receiver) -> None:
    """It says which port and what to do."""
    with pytest.raises(ReceiverError, match=f"port {receiver.port}: another program .* --port"):
        Receiver(port=receiver.port)


def test_the_command_tells_what_is_wrong_and_exits_1(receiver: Receiver) -> None:
    """A port in use is the user's to mend, and no mistake of the program."""
    command = [sys.executable, "-m", "se3_uploader", "receive", "--port", str(receiver.port)]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 1
    assert ended.stderr.startswith("The receiver cannot listen on 127.0.0.1, port")
    assert ended.stderr.endswith("choose another port with --port.\n")


def test_an_address_of_another_machine_is_a_clear_error() -> None:
    """192.0.2.1 is nobody's."""
    with pytest.raises(ReceiverError, match=r"cannot listen on 192\.0\.2\.1, port 0: .* --host"):
        Receiver("192.0.2.1")


def test_a_folder_that_cannot_be_written_is_a_clear_error(tmp_path: Path) -> None:
    """It names the folder; the port is free again."""
    (tmp_path / "file").write_text("")
    with pytest.raises(ReceiverError, match=r"cannot store in .*file/below: .* --dir"):
        Receiver(dir=tmp_path / "file" / "below")


def test_a_missing_extra_is_a_clear_error() -> None:
    """Without flask the message is the command that helps."""
    code = (
        "import sys; sys.modules['flask'] = None\n"
        "from se3_uploader.receiver import Receiver, ReceiverError\n"
        "try: Receiver()\n"
        "except ReceiverError as error: print(error)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'se3-uploader[receiver]'" in said.stdout


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_serve_says_where_it_is_and_a_signal_ends_it(number: signal.Signals) -> None:
    """Port 0 is reported as the real one, and the temporary folder goes with the receiver."""
    code = (
        "from se3_uploader.receiver import serve\n"
        "serve('127.0.0.1', 0, None, fail=0, delay_ms=0, status=None,"
        " ready=lambda line: print(line, flush=True))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True
    ) as serving:
        page, endpoints, folder = (serving.stdout.readline() for _ in range(3))
        url = page.split()[-1]
        assert f"{url}HistoryEvent" in endpoints
        assert requests.post(url + "HistoryEvent", json=event(), timeout=5).json() == SUCCESS
        file = Path(folder.split(" in ")[1].split(",")[0])
        assert file.exists()
        serving.send_signal(number)
        assert serving.wait(timeout=20) == 0
    assert not file.parent.exists()


def test_a_stopped_receiver_leaves_nothing_behind(tmp_path: Path) -> None:
    """No thread, and the port can be used again at once."""
    threads = threading.active_count()
    with Receiver(dir=tmp_path) as receiver:
        post(receiver, event())
    assert threading.active_count() == threads
    with Receiver(dir=tmp_path, port=receiver.port) as again:
        assert post(again, event()).status_code == 200


def test_the_feed_tells_only_what_changed(receiver: Receiver) -> None:
    """Since its cursor a page gets new and repeated events, or none where nothing happened."""

    def ask(**known: Any) -> Any:
        return requests.get(receiver.url + "/api/feed", known, timeout=5).json()

    for key in "abc":
        post(receiver, event(), Idempotency_Key=key)
    post(receiver, status(), "/DeviceStatus")
    first = ask()
    assert len(first["gateways"]) == 1
    assert [card["id"] for card in first["events"]] == [3, 2, 1]
    known = {"store": first["store"], "since": first["cursor"]}
    assert "events" not in ask(**known)
    post(receiver, event(), Idempotency_Key="b")
    news = ask(**known)
    assert [(card["id"], card["repeats"]) for card in news["events"]] == [(2, 1)]
    assert "gateways" not in news
    assert len(ask(store="of another receiver", since=first["cursor"])["events"]) == 3


def test_the_feed_survives_any_payload(receiver: Receiver) -> None:
    """Whatever JSON was stored, the page can be told of it, in bounded size."""
    odd: List[Any] = [None, [], "x", {}, {"ext_data": []}, {"ext_data": {"person_type": [1]}}]
    odd += [{field: value} for field in event() for value in (None, {}, [[]], 1e300, "x" * 100_000)]
    odd += [{"ext_data": {"person_type": 2**63, "spot_pic": 5}}]
    for payload in odd:
        assert post(receiver, payload).status_code == 422
        assert post(receiver, payload, "/DeviceStatus").status_code == 422
    answer = requests.get(receiver.url + "/api/feed", timeout=5)
    assert len(answer.json()["events"]) == len(odd)
    assert len(answer.content) < 100_000
    for card in answer.json()["events"]:
        assert requests.get(f"{receiver.url}/api/event/{card['id']}", timeout=5).ok


def test_only_the_owner_may_read_the_faces(tmp_path: Path) -> None:
    """The folder is 0700 and the file 0600, whatever the umask."""
    before = os.umask(0)
    try:
        store = Store(tmp_path / "new")
    finally:
        os.umask(before)
    assert stat.S_IMODE(store.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(store.path.parent.stat().st_mode) == 0o700
    store.close()


def test_the_store_is_bounded_by_number_and_by_bytes(tmp_path: Path) -> None:
    """The newest reports stay, the pictures of the others go with them, the counts remain."""
    for name, bound, kept in (
        ("number", {"keep": 5}, 5),
        ("bytes", {"keep_bytes": 3_000_000}, None),
    ):
        store = Store(tmp_path / name, **bound)
        for number in range(150):
            store.add_event(event(score=number, reg_pic="A" * 40_000), [], str(number), b"")
            store.add_status(status(), [], None, b"")
        scores = [report.payload["score"] for report in store.events()]
        assert scores == list(range(150 - len(scores), 150))
        assert len(scores) == kept if kept else len(scores) < 120
        assert store.picture(1, "spot_pic") is None
        assert store.counts()["accepted"] == 150
        store.close()


def test_a_second_store_reads_beside_a_running_receiver(tmp_path: Path) -> None:
    """Store(DIR) beside a running receiver sees what it has answered."""
    with Receiver(dir=tmp_path) as receiver:
        other = Store(tmp_path)
        post(receiver, event())
        assert [report.payload for report in other.events()] == [event()]
        other.close()


def test_a_restart_keeps_what_is_stored_and_still_knows_repeats(tmp_path: Path) -> None:
    """--dir DIR outlives the process: events, pictures, counts and keys."""
    with Receiver(dir=tmp_path) as receiver:
        post(receiver, event(), Idempotency_Key="k")
    with Receiver(dir=tmp_path) as receiver:
        post(receiver, event(), Idempotency_Key="k")
        (stored,) = receiver.store.events()
        assert (stored.payload, stored.repeats) == (event(), 1)
        assert receiver.store.counts()["accepted"] == 1
