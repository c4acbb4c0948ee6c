"""Tokens, passwords and certificate files: read by reference, again when they change."""

from __future__ import annotations

import base64
import os
from pathlib import Path
from typing import Dict

import pytest
import trustme

from se3_uploader import config
from tests.http_server import Server
from tests.posting import Posting, post

CA = trustme.CA()


def test_bearer_token(tmp_path: Path) -> None:
    """The token of a file, without the line's end, stands in the Authorization header."""
    (tmp_path / "token").write_text("t0ken\n")
    with Server() as server:
        assert post(server.url, auth=config.Auth(bearer_file=str(tmp_path / "token"))).status == 200
        assert server.requests[0].headers["authorization"] == "Bearer t0ken"


def test_basic_password(tmp_path: Path) -> None:
    """user:password of a file is sent as basic auth; it may hold colons and any script."""
    (tmp_path / "secret").write_text("box:pä:ss", encoding="utf-8")
    with Server() as server:
        assert post(server.url, auth=config.Auth(basic_file=str(tmp_path / "secret"))).status == 200
        kind, _, value = server.requests[0].headers["authorization"].partition(" ")
    assert (kind, base64.b64decode(value).decode()) == ("Basic", "box:pä:ss")


@pytest.mark.parametrize("replace", [False, True], ids=["rewritten", "replaced"])
def test_changed_token_is_used_at_once(tmp_path: Path, replace: bool) -> None:
    """A token that was rewritten or replaced is used by the very next POST, without a restart."""
    path = tmp_path / "token"
    path.write_text("old")
    with Server() as server, Posting(
        server.url, auth=config.Auth(bearer_file=str(path)), max_in_flight=1
    ) as posting:
        for token in ("old", "old", "new", "newer"):
            if replace:
                (tmp_path / "next").write_text(token)
                os.replace(tmp_path / "next", path)
            else:
                path.write_text(token)
                os.utime(path, ns=(0, hash(token) % 10**18))  # as if some time had passed
            assert posting.post().status == 200
        sent = [request.headers["authorization"] for request in server.requests]
    assert sent == ["Bearer old", "Bearer old", "Bearer new", "Bearer newer"]


BAD_TOKENS = {
    "missing": (None, "No such file or directory"),
    "empty": (b"", "is empty"),
    "blank": (b" \n \n", "is empty"),
    "two lines": (b"first\r\nX-Injected: 1", "one line"),
    "control characters": (b"a\x00b", "one line"),
    "not UTF-8": (b"\xff\xfe\x00", "one line"),
    "a film": (b"x" * 1_000_000, "is it the right file?"),
}


@pytest.mark.parametrize(("content", "words"), BAD_TOKENS.values(), ids=BAD_TOKENS.keys())
@pytest.mark.parametrize("kind", ["bearer_file", "basic_file"])
def test_bad_tokens(tmp_path: Path, kind: str, content: bytes, words: str) -> None:
    """Without a usable token nothing is connected; the file is named, its content is not."""
    path = tmp_path / "token"
    if content is not None:
        path.write_bytes(content)
    with Server() as server, Posting(server.url, auth=config.Auth(**{kind: str(path)})) as posting:
        answer = posting.post()
        assert (answer.status, answer.fault, server.connections) == (None, "credentials", 0)
        assert words in answer.detail
        assert str(path) in answer.detail
        assert "Injected" not in answer.detail
        path.write_text("user:good")
        assert posting.post().status == 200


def test_basic_needs_a_user(tmp_path: Path) -> None:
    """A password without its user is refused before anything is sent."""
    (tmp_path / "secret").write_text("hunter2")
    with Server() as server:
        answer = post(server.url, auth=config.Auth(basic_file=str(tmp_path / "secret")))
        assert (answer.fault, server.connections) == ("credentials", 0)
    assert "user:password" in answer.detail
    assert "hunter2" not in answer.detail


def test_token_in_chinese(tmp_path: Path) -> None:
    """What no header can hold is a bad token, not a bad connection."""
    (tmp_path / "token").write_text("令牌", encoding="utf-8")
    with Server() as server:
        answer = post(server.url, auth=config.Auth(bearer_file=str(tmp_path / "token")))
        assert (answer.fault, server.connections) == ("credentials", 0)
    assert "令牌" not in answer.detail


def test_token_that_vanishes(tmp_path: Path) -> None:
    """When the file goes away the old token is not used any longer."""
    path = tmp_path / "token"
    path.write_text("t0ken")
    auth = config.Auth(bearer_file=str(path))
    with Server() as server, Posting(server.url, auth=auth) as posting:
        assert posting.post().status == 200
        path.unlink()
        assert posting.post().fault == "credentials"
        assert len(server.requests) == 1


@pytest.mark.parametrize("variable", ["$CREDENTIALS_DIRECTORY", "${CREDENTIALS_DIRECTORY}"])
def test_systemd_credentials(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    """A path may start from the folder in which systemd hands credentials over."""
    (tmp_path / "token").write_text("t0ken")
    auth = config.Auth(bearer_file=variable + "/token")
    with Server() as server, Posting(server.url, auth=auth) as posting:
        monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
        answer = posting.post()
        assert (answer.fault, server.connections) == ("credentials", 0)
        assert "LoadCredential=" in answer.detail
        monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
        assert posting.post().status == 200


def bad_files(folder: Path) -> Dict[str, config.Tls]:
    """Certificate settings of which every one is unusable in another way."""
    good, other = CA.issue_cert("box@example.org"), CA.issue_cert("box@example.org")
    good.cert_chain_pems[0].write_to_path(str(folder / "cert.pem"))
    other.private_key_pem.write_to_path(str(folder / "key.pem"))
    (folder / "empty.pem").write_bytes(b"")
    (folder / "text.pem").write_bytes(b"certificate, please")
    encrypted = (
        b"-----BEGIN ENCRYPTED PRIVATE KEY-----\nMIIB\n-----END ENCRYPTED PRIVATE KEY-----\n"
    )
    (folder / "encrypted.pem").write_bytes(good.cert_chain_pems[0].bytes() + encrypted)
    name = {path.name: str(path) for path in folder.iterdir()}
    return {
        "no CA file": config.Tls(ca_file=str(folder / "nowhere.pem")),
        "empty CA file": config.Tls(ca_file=name["empty.pem"]),
        "CA file of text": config.Tls(ca_file=name["text.pem"]),
        "no certificate file": config.Tls(cert_file=str(folder / "nowhere.pem")),
        "empty certificate file": config.Tls(cert_file=name["empty.pem"]),
        "certificate without key": config.Tls(cert_file=name["cert.pem"]),
        "key of another": config.Tls(cert_file=name["cert.pem"], key_file=name["key.pem"]),
        "no key file": config.Tls(cert_file=name["cert.pem"], key_file=str(folder / "nowhere.pem")),
        "encrypted key": config.Tls(cert_file=name["encrypted.pem"]),
    }


def test_bad_certificate_files(tmp_path: Path) -> None:
    """An unusable certificate file is reported before anything is connected, and asks nobody."""
    with Server() as server:
        for case, tls in bad_files(tmp_path).items():
            answer = post(server.url.replace("http:", "https:"), tls=tls)
            assert (answer.status, answer.fault) == (None, "credentials"), case
            assert str(tmp_path) in answer.detail, case
        assert server.connections == 0


def test_folder_in_place_of_a_file(tmp_path: Path) -> None:
    """A folder where a token should be is named as such."""
    answer = post("http://127.0.0.1:9/", auth=config.Auth(bearer_file=str(tmp_path)))
    assert answer.fault == "credentials"
    assert "directory" in answer.detail
