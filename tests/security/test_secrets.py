"""Marked secrets are nowhere to be found in what the program writes, whatever goes wrong.

All faults happen to the real engine, sinks and outbox; then every command tells what it knows.
"""

from __future__ import annotations

import json
import signal
import socketserver
import ssl
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, Tuple

import pytest
import trustme

from se3_uploader import cli, metrics
from se3_uploader import config as configuration
from se3_uploader.config import Config
from tests.http_server import DROP, HANG, RESET, Reply, Request, Server
from tests.receiver_samples import event as event_payload
from tests.servers import free_port
from tests.site import Process, Site, Uploader

from . import secrets_of as marked
from .secrets_of import secrets_in

LOGIN = f"{marked.USER}:{marked.PASSWORD}"
EVERYTHING = ("--since", "2020-01-01", "--until", "2030-01-01")
SHORT: Dict[str, Any] = {"connect": "0.3s", "read": "0.3s", "total": "0.5s"}
RETRY: Dict[str, Any] = {"base": "1s", "cap": "4s", "reject_after": 1}


def all_said(config: Config, capfd: Any) -> bytes:
    """What every command that looks says about a site, and what Prometheus is told."""
    for words in (
        ["status"], ["status", "--json"], ["check"], ["outbox", "list"], ["outbox", "show"],
        ["backfill", *EVERYTHING, "--dry-run"], ["source", "inspect"],
    ):  # fmt: skip
        cli.main([*words, "-c", config.path])
    said = capfd.readouterr()
    return (said.out + said.err + metrics_of(config)).encode()


def metrics_of(config: Config) -> str:
    """What Prometheus would get, where its package is installed."""
    pytest.importorskip("prometheus_client", reason="needs the extra 'metrics'")
    listen = f"127.0.0.1:{free_port()}"
    server = metrics.Metrics(replace(config, metrics=configuration.Metrics(listen)))
    try:
        with urllib.request.urlopen(f"http://{listen}/metrics", timeout=10) as answer:
            return str(answer.read().decode())
    finally:
        server.close()


def around(config: Config) -> bytes:
    """The small files that the program keeps beside its outbox."""
    folder = Path(config.outbox.path).parent
    names = [path for path in folder.iterdir() if path.suffix in (".lock", ".daemon")]
    return b"".join(path.read_bytes() + path.name.encode() for path in names)


def echo(status: int, **headers: str) -> Callable[[Request], Reply]:
    """A platform that answers with all that it got: headers, target and body, in several ways."""

    def script(request: Request) -> Reply:
        body = request.body.decode()
        got = {"target": request.target, "headers": dict(request.headers)}
        plain = json.dumps({**got, "event": json.loads(body)}, ensure_ascii=False)
        escaped = json.dumps({**got, "event": body})
        reason = {"X-Name": marked.PERSON, **headers}
        return Reply(status, f"{plain}\n{escaped}".encode(), reason)

    return script


def raw_echo(request: Request) -> Reply:
    """A platform whose answer is no HTTP and holds the event."""
    return Reply(raw=marked.NAME.encode() + request.body)


def long_reason(_: Request) -> Reply:
    """A platform that puts the event into the status line."""
    return Reply(raw=f"HTTP/1.1 400 {marked.PERSON} {marked.BEARER}\r\n\r\n".encode())


PLATFORMS: Dict[str, Any] = {
    "hangs up": DROP,
    "resets": RESET,
    "never answers": HANG,
    "no HTTP": raw_echo,
    "talks in the status line": long_reason,
    "breaks off": Reply(
        raw=b"HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n" + marked.PHONE.encode()
    ),
    "redirects": echo(307, Location=f"http://127.0.0.1:9/{marked.QUERY}"),
    **{str(status): echo(status) for status in (400, 401, 403, 404, 407, 413, 422, 429, 500, 503)},
}


def settle(config: Config) -> None:
    """Let the engine work on a site until every event ended, or failed a few times."""
    with Uploader(config) as uploader:
        events = [queue for queue in uploader.engine.queues if queue.is_events]
        uploader.run(
            lambda: all(
                uploader.engine.source_error or (queue.is_idle() and queue.caught_up)
                or queue.health.failures > 2
                for queue in events
            ),
            within=120,
        )  # fmt: skip
        uploader.engine.copy_all()


@pytest.mark.parametrize("platform", PLATFORMS.values(), ids=PLATFORMS)
def test_whatever_a_platform_does(site: Site, capfd, logged, tmp_path: Path, platform: Any) -> None:
    """It sends back all that it was sent, in every kind of answer: nobody repeats it."""
    with Server(platform) as server:
        config = site.configure(
            f"{server.url}?token={marked.QUERY}", retry=RETRY,
            endpoint={
                "headers": {"X-Site": marked.HEADER}, "timeout": SHORT, "max_in_flight": 1,
                **marked.bearer(tmp_path),
            },
        )  # fmt: skip
        settle(config)
        said = all_said(config, capfd) + logged.getvalue().encode() + around(config)
    assert server.requests
    assert marked.QUERY in server.requests[0].target
    assert marked.BEARER in server.requests[0].headers["authorization"]
    assert secrets_in(said) == []
    texts = site.rows("SELECT coalesce(reason, '') || coalesce(answer, '') FROM delivery")
    texts += site.rows("SELECT coalesce(error, '') || url FROM endpoint")
    assert secrets_in(json.dumps(texts, ensure_ascii=False).encode()) == []


def test_an_answer_that_accept_does_not_like(site: Site, capfd, logged, tmp_path: Path) -> None:
    """A 200 with the event in it and without what `accept` asks becomes a silent dead letter."""
    with Server(echo(200)) as server:
        config = site.configure(
            server.url, retry=RETRY, endpoint={"accept": {"status": 0}, **marked.basic(tmp_path)}
        )
        settle(config)
        said = all_said(config, capfd) + logged.getvalue().encode()
    assert site.account()["dead"] == 1
    assert server.requests[0].headers["authorization"].startswith("Basic ")
    assert secrets_in(said) == []


BAD_FILES: Dict[str, Callable[[Path], Dict[str, Any]]] = {
    "two lines": lambda folder: marked.bearer(folder, f"{marked.BEARER}\n{marked.PASSWORD}"),
    "no ASCII": lambda folder: marked.bearer(folder, f"{marked.BEARER}ü"),
    "too long": lambda folder: marked.bearer(folder, marked.BEARER * 2000),
    "no colon": lambda folder: marked.basic(folder, marked.PASSWORD),
    "control character": lambda folder: marked.basic(folder, f"{LOGIN}\x01"),
    "a token for a key": lambda folder: {
        "tls": {"cert_file": marked.bearer(folder)["auth"]["bearer_file"]}
    },
    "a token for an authority": lambda folder: {
        "tls": {"ca_file": marked.bearer(folder)["auth"]["bearer_file"]}
    },
    "unknown authority": marked.bearer,
    "a proxy with a password": lambda folder: {
        "proxy": f"http://{marked.USER}:{marked.PASSWORD}@127.0.0.1:9", **marked.bearer(folder)
    },
}  # fmt: skip


@pytest.mark.parametrize("make", BAD_FILES.values(), ids=BAD_FILES)
def test_credentials_that_cannot_be_used(site: Site, capfd, logged, tmp_path, make: Any) -> None:
    """Files with secrets in the wrong form, a proxy, a stranger's certificate: none is quoted."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1", common_name=marked.NAME).configure_cert(context)
    with Server(tls=context) as server:
        config = site.configure(server.url, retry=RETRY, endpoint=make(tmp_path))
        settle(config)
        said = all_said(config, capfd) + logged.getvalue().encode()
        assert server.received == 0
    assert site.account()["pending"] == 1
    assert secrets_in(said) == []


MARK = marked.NAME
BAD_ROWS: Tuple[Dict[str, Any], ...] = (
    {"timestamp": MARK},
    {"timestamp": None},
    {"score": MARK},
    {"score": float("inf")},
    {"identity_id": marked.PERSON.encode() + b"\xff\xfe"},
    {"identity_name": marked.NAME.encode("gbk", "replace") + b"\xff"},
    {"identity_name": None},
    {"reg_pic": f"{MARK} is no base64"},
    {"spot_pic": f"/photos/{MARK}.jpg"},
    {"person_type": MARK},
    {"device_type": MARK},
    {"grab_fiqa_info": '{"broken": "' + MARK},
    {"box_fiqa_info": f'["{MARK}"]'},
    {"phone": "{" + f'"{MARK}": NaN, "x": ' + "[" * 300},
    {"group_name": None},
    {"dev_sno": MARK.encode("utf-16")},
)


def test_rows_that_are_wrong(site: Site, capfd, logged) -> None:
    """Each field with a secret where it does not belong: reasons name the field, no value."""
    site.add(*(marked.secret_event(**changes) for changes in BAD_ROWS))
    with Server(echo(422)) as server:
        config = site.configure(server.url, retry=RETRY)
        settle(config)
        server.script = Reply()
        settle(config)
        said = all_said(config, capfd) + logged.getvalue().encode()
    assert site.account()["dead"] >= 5
    assert secrets_in(said) == []
    reasons = site.rows("SELECT reason, answer FROM delivery WHERE reason IS NOT NULL")
    assert secrets_in(json.dumps(reasons, ensure_ascii=False).encode()) == []


DRIVERS = {"sqlite": "sqlite3", "mysql": "pymysql", "postgresql": "psycopg2", "mongodb": "pymongo"}
BAD_SOURCES = {
    "no database": "sqlite:///{folder}/text.db",
    "mysql away": f"mysql://{LOGIN}@127.0.0.1:{{port}}/events",
    "postgresql away": f"postgresql://{LOGIN}@127.0.0.1:{{port}}/events",
    "mongodb away": f"mongodb://{LOGIN}@127.0.0.1:{{port}}/events?serverSelectionTimeoutMS=300",
    "mysql is http": f"mysql://{LOGIN}@127.0.0.1:{{http}}/events",
    "postgresql is http": f"postgresql://{LOGIN}@127.0.0.1:{{http}}/events",
}


@pytest.mark.parametrize("url", BAD_SOURCES.values(), ids=BAD_SOURCES)
def test_a_source_that_cannot_be_read(site: Site, capfd, logged, tmp_path: Path, url: str) -> None:
    """A database that is none, is away, or is something else: its url keeps its password."""
    pytest.importorskip(DRIVERS[url.partition(":")[0]], reason="needs a driver")
    (tmp_path / "text.db").write_text(f"{marked.NAME},{marked.PERSON}\n" * 100)
    with Server() as server, greeter(b"HTTP/1.1 400 " + marked.PASSWORD.encode()) as http:
        source = {"url": url.format(folder=tmp_path, port=free_port(), http=http)}
        config = site.configure(server.url, source=source)
        settle(config)
        said = all_said(config, capfd) + logged.getvalue().encode() + repr(config).encode()
    assert b"cannot" in said
    assert secrets_in(said) == []


@contextmanager
def greeter(words: bytes) -> Iterator[int]:
    """A port where somebody speaks first and hangs up, and is no database."""

    class Greet(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.sendall(words)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Greet) as listener:
        threading.Thread(target=listener.serve_forever, args=(0.01,), daemon=True).start()
        yield listener.server_address[1]
        listener.shutdown()


WRONG_FILES = {
    "credentials in the url": f"history_event: {{endpoints: [{{url: 'http://{LOGIN}@h/'}}]}}",
    "password in a wrong source": f"source: {{url: 'oracle://{LOGIN}@h/db'}}",
    "password and a bad port": f"source: {{url: 'mysql://{LOGIN}@h:99999999/'}}",
    "token in place of a file": f"history_event: {{endpoints: [{{auth: '{marked.BEARER}'}}]}}",
    "token as a header": "history_event: {endpoints: [{url: 'http://h/', headers: "
    f"{{Authorization: 'Bearer {marked.BEARER}'}}}}]}}",
    "token with a line break": "history_event: {endpoints: [{url: 'http://h/', headers: "
    f'{{X: "{marked.BEARER}\\n"}}}}]}}',
    "bad proxy": f"history_event: {{endpoints: [{{url: 'http://h/', proxy: 'ftp://{LOGIN}@p'}}]}}",
    "bad duration": f"retry: {{base: '{marked.PASSWORD}'}}",
    "bad choice": f"log: {{level: '{marked.PASSWORD}'}}",
    "not closed": f"source: {{url: 'mysql://{LOGIN}@h/db",
    "tag": f"source: {{url: !secret '{marked.PASSWORD}'}}",
    "anchor": f"source: &a {{url: '{marked.PASSWORD}'}}\nretry: *a",
    "a secret for a key": f"'Bearer {marked.BEARER}': 1",
    "a list": f"['{marked.PASSWORD}']",
    "control character": f"source: {{url: '{marked.PASSWORD}\x07'}}",
}


@pytest.mark.parametrize("text", WRONG_FILES.values(), ids=WRONG_FILES)
def test_a_wrong_configuration(tmp_path: Path, capfd, text: str) -> None:
    """Every mistake is told by its line and key, and no value stands in the sentence."""
    path = tmp_path / "uploader.yaml"
    path.write_text(text)
    assert cli.main(["status", "-c", str(path)]) == cli.CONFIG
    said = capfd.readouterr()
    assert str(path) in said.err
    assert secrets_in((said.out + said.err).encode()) == []


def test_a_damaged_outbox(site: Site, capfd, logged) -> None:
    """Pages full of names are no reason to quote them."""
    with Server(Reply(503)) as server:
        config = site.configure(server.url, retry=RETRY)
        settle(config)
        whole = site.outbox.read_bytes()
        site.outbox.write_bytes(whole[:4096] + (marked.NAME * 9000).encode())
        said = all_said(config, capfd)
        server.script = Reply()
        settle(config)
        said += all_said(config, capfd) + logged.getvalue().encode()
    assert b"damaged" in said
    assert site.account()["delivered"] == 1
    assert secrets_in(said) == []


def test_letters_are_handled_without_being_read_aloud(site: Site, capfd, logged) -> None:
    """retry, discard and the erasure of somebody else say how many, and about whom never."""
    site.add(marked.secret_event(), marked.secret_event())
    with Server(echo(422)) as server:
        config = site.configure(server.url, retry=RETRY)
        settle(config)
        for words in (["retry", "1"], ["discard", "2"], ["discard", "--person", "nobody"]):
            assert cli.main(["outbox", *words, "--yes", "-c", config.path]) in (0, 1)
        said = all_said(config, capfd) + logged.getvalue().encode()
    assert site.account()["lost"] == 1
    assert secrets_in(said) == []


@pytest.mark.parametrize("form", ["text", "json"])
def test_the_daemon_itself(site: Site, tmp_path: Path, form: str) -> None:
    """A daemon through an outage, bad reloads and a stop: its log, arguments and environment."""
    port = free_port()
    with Server(echo(500)) as server:
        config = site.configure(
            f"{server.url}?token={marked.QUERY}",
            endpoint={"headers": {"X-Site": marked.HEADER}, **marked.bearer(tmp_path)},
            log={"level": "debug", "format": form}, metrics={"listen": f"127.0.0.1:{port}"},
            retry={"base": "0.1s", "cap": "0.2s", "reject_after": 1},
        )  # fmt: skip
        good = Path(config.path).read_text()
        with Process(config) as daemon:
            daemon.wait_for("does not take deliveries")
            process = Path(f"/proc/{daemon.popen.pid}")
            said = (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
            said += b"".join(path.read_bytes() for path in process.glob("task/*/comm"))
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
                said += answer.read()
            Path(config.path).write_text(f"source: {{url: 'oracle://{LOGIN}@h/db'}}")
            daemon.signal(signal.SIGHUP)
            daemon.wait_for("not reloaded")
            Path(config.path).write_text(good)
            server.script = echo(422)
            daemon.wait_for("an event is dead")
            site.add(marked.secret_event(score=marked.NAME))
            daemon.wait_for("an event is dead", count=2)
            server.script = Reply()
            before = len(server.requests)
            site.add(marked.secret_event())
            server.wait_for(before + 1)
            said += around(config)
            daemon.signal(signal.SIGTERM)
            assert daemon.end() == 0
    assert secrets_in(said + daemon.log.encode()) == []


def test_the_test_receiver_says_little(tmp_path: Path) -> None:
    """What the receiver prints holds nothing of an event, good or refused."""
    pytest.importorskip("flask", reason="needs the extra 'receiver'")
    port = free_port()
    command = [
        sys.executable, "-m", "se3_uploader", "receive", "--port", str(port), "--dir", str(tmp_path)
    ]  # fmt: skip
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, bufsize=0
    ) as receiver:
        assert receiver.stdout is not None
        said = b""
        while str(port).encode() not in said:
            line = receiver.stdout.readline()
            assert line, said
            said += line
        for body in (
            event_payload(identity_name=marked.NAME),
            event_payload(identity_name=marked.NAME, score=marked.PERSON),
            marked.NAME,
        ):
            request = urllib.request.Request(
                f"http://127.0.0.1:{port}/HistoryEvent", json.dumps(body).encode(),
                {"Content-Type": "application/json"},
            )  # fmt: skip
            try:
                urllib.request.urlopen(request, timeout=10).close()
            except urllib.error.HTTPError as refused:
                refused.close()
        receiver.send_signal(signal.SIGTERM)
        rest, _ = receiver.communicate(timeout=20)
    assert secrets_in(said + rest) == []


def test_a_mistake_in_the_program_does_not_speak_of_the_event() -> None:
    """The words of an exception that nobody foresaw may be personal: only its kind is told."""
    try:
        int(marked.NAME)
    except ValueError as error:
        said = cli._explained(error)
    assert "ValueError at test_secrets.py" in said
    assert secrets_in(said.encode()) == []


def test_the_search_finds_what_it_is_to_find() -> None:
    """Each form in which a secret may show up is recognised; this test guards the others."""
    event: Dict[str, Any] = {**marked.secret_event(), "spot_pic": ""}
    assert len(secrets_in(json.dumps(event).encode())) >= 5
    assert secrets_in(marked.SPOT_PIC)
    assert secrets_in(json.dumps(marked.NAME).upper().encode())
    assert secrets_in(b"Basic WnE3dXNlcjpacTdwNHNzd29yZA==")
    assert secrets_in(b"an ordinary line [endpoint=p0]") == []
