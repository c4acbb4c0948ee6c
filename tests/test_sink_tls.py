"""TLS for real: whom the sink talks to, and that nothing of an event reaches anyone else."""

from __future__ import annotations

import datetime
import io
import ipaddress
import os
import socket
import ssl
import threading
from pathlib import Path
from typing import Any, Optional

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

from se3_uploader import config
from se3_uploader.policy import Answer
from tests.http_server import HANG, Reply, Server
from tests.posting import Posting, post

BUFFER = io.DEFAULT_BUFFER_SIZE
DAY = datetime.timedelta(days=1)
NOW = datetime.datetime.now(datetime.timezone.utc)
CA = trustme.CA()
OTHER_CA = trustme.CA()


def server_tls(certificate: Optional[trustme.LeafCert] = None) -> ssl.SSLContext:
    """A server's side of TLS, with a good certificate for 127.0.0.1 unless another is given."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    (certificate or CA.issue_cert("127.0.0.1")).configure_cert(context)
    return context


@pytest.fixture
def ca_file(tmp_path: Path) -> str:
    """The file of the authority that our platform's certificate comes from."""
    path = tmp_path / "ca.pem"
    CA.cert_pem.write_to_path(str(path))
    return str(path)


def write_pair(folder: Path, certificate: trustme.LeafCert) -> config.Tls:
    """A client certificate and its key as files, and the settings that name them."""
    certificate.cert_chain_pems[0].write_to_path(str(folder / "cert.pem"))
    certificate.private_key_pem.write_to_path(str(folder / "key.pem"))
    return config.Tls(
        ca_file=str(folder / "ca.pem"),
        cert_file=str(folder / "cert.pem"),
        key_file=str(folder / "key.pem"),
    )


def refused(server: Server, answer: Answer) -> bool:
    """The answer is a TLS fault, and the platform got nothing of the event."""
    server.wait_until(lambda: not server.open_connections)
    return (answer.status, answer.fault, server.received) == (None, "tls", 0)


def test_verified_with_own_ca(ca_file: str) -> None:
    """A certificate of the site's own authority is good, and its end of life is remembered."""
    not_after = NOW + 90 * DAY
    context = server_tls(CA.issue_cert("127.0.0.1", not_after=not_after))
    with Server(tls=context) as server:
        with Posting(server.url, tls=config.Tls(ca_file=ca_file)) as posting:
            assert posting.sink.certificate_not_after is None
            for _ in range(3):
                assert posting.post().status == 200
            assert posting.sink.certificate_not_after == int(not_after.timestamp())
        assert server.connections == 1


def test_big_bodies_over_tls(ca_file: str) -> None:
    """A body of many TLS records arrives whole."""
    body = os.urandom(3_000_000)
    with Server(tls=server_tls()) as server:
        assert post(server.url, body, tls=config.Tls(ca_file=ca_file)).status == 200
        assert server.requests[0].body == body


def self_signed() -> ssl.SSLContext:
    """A server with a certificate that nobody signed but itself."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority = trustme.CA()
    pem = authority.private_key_pem.bytes() + authority.cert_pem.bytes()
    with trustme.Blob(pem).tempfile() as path:
        context.load_cert_chain(path)
    return context


def not_yet_valid() -> ssl.SSLContext:
    """A server whose certificate begins tomorrow, which trustme makes on newer Pythons only."""
    key = serialization.load_pem_private_key(CA.private_key_pem.bytes(), None)
    authority = x509.load_pem_x509_certificate(CA.cert_pem.bytes())
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(authority.subject)
        .not_valid_before(NOW + DAY)
        .not_valid_after(NOW + 3 * DAY)
        .serial_number(x509.random_serial_number())
        .public_key(key.public_key())
        .add_extension(x509.SubjectAlternativeName([address]), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = CA.private_key_pem.bytes() + certificate.public_bytes(serialization.Encoding.PEM)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with trustme.Blob(pem).tempfile() as path:
        context.load_cert_chain(path)
    return context


def only_tls_1_1() -> ssl.SSLContext:
    """A server that speaks nothing newer than TLS 1.1."""
    context = server_tls()
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = ssl.TLSVersion.TLSv1
    context.maximum_version = ssl.TLSVersion.TLSv1_1
    return context


BAD_SERVERS = {
    "expired": (lambda: server_tls(CA.issue_cert("127.0.0.1", not_after=NOW - DAY)), "expired"),
    "not yet valid": (not_yet_valid, "check the clock of this box"),
    "wrong address": (lambda: server_tls(CA.issue_cert("127.0.0.2")), "127.0.0.1"),
    "wrong host": (lambda: server_tls(CA.issue_cert("platform.example")), "127.0.0.1"),
    "unknown CA": (lambda: server_tls(OTHER_CA.issue_cert("127.0.0.1")), "issuer"),
    "self-signed": (self_signed, "self"),
    "TLS 1.1": (only_tls_1_1, "no secure connection"),
}


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
@pytest.mark.parametrize(("make", "words"), BAD_SERVERS.values(), ids=BAD_SERVERS.keys())
def test_bad_servers_get_nothing(ca_file: str, make: Any, words: str) -> None:
    """Whatever is wrong with a platform's certificate, not a byte of the event goes there."""
    with Server(tls=make()) as server:
        answer = post(server.url, tls=config.Tls(ca_file=ca_file))
        assert refused(server, answer), answer
        assert words in answer.detail


def test_plain_server_on_a_tls_port(ca_file: str) -> None:
    """A platform that speaks http where https is configured gets a greeting, not an event."""
    with socket.create_server(("127.0.0.1", 0)) as listener, Posting(
        f"https://127.0.0.1:{listener.getsockname()[1]}/", tls=config.Tls(ca_file=ca_file)
    ) as posting:
        number = posting.submit()
        connection, _ = listener.accept()
        with connection:
            hello = connection.recv(65536)
            connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            answer = posting.wait(number)
    assert hello.startswith(b"\x16\x03")  # a TLS handshake record
    assert answer.fault == "tls"


def test_own_ca_is_the_only_one(
    ca_file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a ca_file the machine's own authorities count for nothing."""
    monkeypatch.setenv("SSL_CERT_FILE", ca_file)
    OTHER_CA.cert_pem.write_to_path(str(tmp_path / "other.pem"))
    with Server(tls=server_tls()) as server:
        answer = post(server.url, tls=config.Tls(ca_file=str(tmp_path / "other.pem")))
        assert refused(server, answer)


def test_machine_authorities_are_the_default(ca_file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a ca_file a stranger is refused, and an authority of the machine is trusted."""
    with Server(tls=server_tls()) as server:
        assert refused(server, post(server.url))
        monkeypatch.setenv("SSL_CERT_FILE", ca_file)
        assert post(server.url).status == 200


def test_verification_can_be_switched_off() -> None:
    """verify: false talks to anybody, as documented."""
    with Server(tls=self_signed()) as server:
        assert post(server.url, tls=config.Tls(verify=False)).status == 200


VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("client", ["none", "wrong", "good"])
def test_client_certificates(
    ca_file: str, tmp_path: Path, version: ssl.TLSVersion, client: str
) -> None:
    """A platform that asks for our certificate gets events only with the right one.

    In TLS 1.3 a platform refuses after we consider the connection made; that is a TLS fault too.
    """
    context = server_tls()
    context.minimum_version = context.maximum_version = version
    context.verify_mode = ssl.CERT_REQUIRED
    CA.configure_trust(context)
    tls = config.Tls(ca_file=ca_file)
    if client != "none":
        authority = CA if client == "good" else OTHER_CA
        tls = write_pair(tmp_path, authority.issue_cert("box@example.org"))
    with Server(tls=context) as server:
        for body in (b"{}", b"x" * 160_000, b"x" * 5_000_000):
            answer = post(server.url, body, tls=tls)
            if client == "good":
                assert answer.status == 200
            else:
                assert refused(server, answer), answer


def test_renewed_client_certificate_is_used(ca_file: str, tmp_path: Path) -> None:
    """When the certificate file changes, the next POST shows the new one, on a new connection."""
    context = server_tls()
    context.verify_mode = ssl.CERT_REQUIRED
    CA.configure_trust(context)
    tls = write_pair(tmp_path, OTHER_CA.issue_cert("box@example.org"))
    with Server(tls=context) as server, Posting(server.url, tls=tls) as posting:
        assert posting.post().fault == "tls"
        write_pair(tmp_path, CA.issue_cert("box@example.org"))
        assert posting.post().status == 200
        assert ca_file == tls.ca_file


def test_server_that_never_finishes_the_handshake(ca_file: str) -> None:
    """A platform silent in the handshake is given up, and cannot hold up the end either."""
    limits = config.Timeout(connect=0.3, read=5, total=5)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"https://127.0.0.1:{listener.getsockname()[1]}/"
        answer = post(url, tls=config.Tls(ca_file=ca_file), timeout=limits)
        assert answer.fault == "timeout"
        assert answer.seconds < 0.6


@pytest.mark.parametrize("script", [HANG, Reply(drip=0.05)], ids=["never", "byte by byte"])
def test_total_holds_over_tls(ca_file: str, script: Reply) -> None:
    """The total time limit cuts a TLS connection as well, and the next POST gets a new one."""
    limits = config.Timeout(connect=2, read=2, total=0.4)
    tls = config.Tls(ca_file=ca_file)
    with Server(script, tls=server_tls()) as server, Posting(
        server.url, tls=tls, timeout=limits
    ) as posting:
        answer = posting.post()
        assert answer.fault == "timeout"
        assert answer.seconds < 0.8
        server.script = Reply()
        assert posting.post().status == 200


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "TLS"])
def test_an_answer_that_nobody_asked_for(ca_file: str, secure: bool) -> None:
    """What follows an answer is never taken for the answer to the next POST."""
    unasked = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
    tls = config.Tls(ca_file=ca_file)
    for size in (0, BUFFER, 2 * BUFFER):  # of what is read at once; the rest may wait unseen
        head = len(Reply(body=b"", headers={"Content-Length": str(size)}).encode())
        body = bytes(max(0, size - head))
        two = Reply(body=body + unasked, headers={"Content-Length": str(len(body))})
        with Server([two, Reply(503)], tls=server_tls() if secure else None) as server, Posting(
            server.url, tls=tls
        ) as posting:
            assert posting.post().status == 200
            server.wait_until(lambda: not server.open_connections)
            assert posting.post().status == 503


def test_kept_tls_connection_that_dies_is_replaced(ca_file: str) -> None:
    """A kept TLS connection that dies unanswered is replaced at once, as without TLS."""
    drop = Reply(raw=b"")
    with Server([Reply(), drop, Reply()], tls=server_tls()) as server:
        with Posting(server.url, tls=config.Tls(ca_file=ca_file)) as posting:
            posting.post()
            assert posting.post().status == 200
        assert [request.connection for request in server.requests] == [0, 0, 1]


class Tunnel:
    """A proxy that knows CONNECT alone, for one connection."""

    def __init__(self, answer: bytes, port: int, tls: Optional[ssl.SSLContext] = None) -> None:
        self.head = b""
        self._answer = answer
        self._port = port
        self._tls = tls
        self._listener = socket.create_server(("127.0.0.1", 0))
        scheme = "https" if tls else "http"
        self.url = f"{scheme}://me:secret@127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        client, _ = self._listener.accept()
        if self._tls:
            client = self._tls.wrap_socket(client, server_side=True)
        with client:
            while b"\r\n\r\n" not in self.head:
                self.head += client.recv(4096)
            client.sendall(self._answer)
            if b" 200 " not in self._answer:
                return
            with socket.create_connection(("127.0.0.1", self._port)) as server:
                back = threading.Thread(target=self._copy, args=(server, client))
                back.start()
                self._copy(client, server)
                back.join()

    @staticmethod
    def _copy(source: socket.socket, target: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)
        except OSError:  # hung up
            pass

    def __enter__(self) -> Tunnel:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.join(5)
        self._listener.close()


def test_https_through_a_proxy(ca_file: str) -> None:
    """A proxy is asked to connect us, sees its own password, and nothing else of a POST."""
    with Server(tls=server_tls()) as server:
        with Tunnel(b"HTTP/1.1 200 Connection established\r\n\r\n", server.port) as tunnel:
            answer = post(server.url, proxy=tunnel.url, tls=config.Tls(ca_file=ca_file))
        assert answer.status == 200
        assert server.requests[0].target == "/HistoryEvent"
        assert "proxy-authorization" not in server.requests[0].headers
    assert tunnel.head.startswith(b"CONNECT 127.0.0.1:%d HTTP/1." % server.port)
    assert b"Proxy-Authorization: Basic bWU6c2VjcmV0" in tunnel.head
    assert b"key-0" not in tunnel.head


def test_proxy_that_refuses(ca_file: str) -> None:
    """A proxy that will not connect us is a connection fault, told without its words."""
    with Server(tls=server_tls()) as server:
        with Tunnel(b"HTTP/1.1 407 SECRET words\r\n\r\n", server.port) as tunnel:
            answer = post(server.url, proxy=tunnel.url, tls=config.Tls(ca_file=ca_file))
        assert (answer.fault, server.connections) == ("connection", 0)
    assert "the proxy refused" in answer.detail
    assert "ecret" not in answer.detail.lower()


def test_tls_in_the_tls_of_a_proxy(ca_file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through an https proxy to an https platform everything goes as without one.

    Large bodies in more pieces than the line takes at once, large answers, several POSTs on one
    connection, and the time limits.
    """
    monkeypatch.setenv("SSL_CERT_FILE", ca_file)
    established = b"HTTP/1.1 200 Connection established\r\n\r\n"
    replies = [Reply(body=b"y" * 60_000), Reply(), Reply(413), HANG]
    with Server(replies, tls=server_tls()) as server:
        with Tunnel(established, server.port, server_tls()) as tunnel, Posting(
            server.url, proxy=tunnel.url, tls=config.Tls(ca_file=ca_file), max_in_flight=1,
            timeout=config.Timeout(connect=5, read=1, total=40),
        ) as posting:  # fmt: skip
            bodies = [os.urandom(8_000_000), os.urandom(16 * 1024), b"", b"{}"]
            assert posting.post(bodies[1]).status == 200
            assert posting.post(bodies[0]).status == 200
            assert posting.post(bodies[2]).status == 413
            assert posting.post(bodies[3]).fault == "timeout"
        received = [request.body for request in server.requests]
    assert received == [bodies[1], bodies[0], bodies[2], bodies[3]]


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_proxy_that_is_reached_by_tls(
    ca_file: str, monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    """A proxy may be an https one; it is verified against the machine's authorities."""
    with Server(tls=server_tls()) as proxy:
        url = f"{scheme}://platform.example/HistoryEvent"
        changes = {"proxy": proxy.url.replace("/HistoryEvent", ""), "kind": "device_status"}
        stranger = post(url, **changes)
        assert refused(proxy, stranger), stranger
        monkeypatch.setenv("SSL_CERT_FILE", ca_file)
        answer = post(url, **changes)
        if scheme == "http":
            assert answer.status == 200
            assert proxy.requests[0].target == url
        else:  # this proxy takes CONNECT for a request and goes on in plain text
            assert proxy.requests[0].method == "CONNECT"
            assert answer.status is None
