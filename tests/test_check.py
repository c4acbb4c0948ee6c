"""check: every part tried for real, told in a line each."""

from __future__ import annotations

import json
import os
import ssl
import time
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import List, Tuple

import pytest
import trustme
from jsonschema import Draft202012Validator

from se3_uploader import check, cli
from se3_uploader.config import Config

from .http_server import Server
from .site import Process, Site, deliver, event
from .terminals import as_nobody, let_in, sizes

TOP = Path(__file__).parent.parent
PICTURE = "c3BvdCBwaWN0dXJl" * 40
SECRET = {"identity_id": "id-s3cret", "identity_name": "王s3cret", "spot_pic": PICTURE}


@pytest.fixture
def site(tmp_path):
    """A box with one event, whose outbox folder is there."""
    site = Site(tmp_path, journal="delete")
    site.add(event(1, **SECRET, timestamp=int(time.time() * 1000)))
    site.outbox.parent.mkdir(mode=0o700)
    return site


@pytest.fixture
def platform():
    """A platform that takes everything."""
    with Server() as server:
        yield server


def found(config: Config, part: str, *, network: bool = True) -> List[Tuple[str, str]]:
    """(level, what was said) of the findings about a part."""
    findings = check.run(config, network=network)
    return [(one.level, one.said) for one in findings if one.part == part]


def test_a_site_in_order_passes(site, platform, capsys):
    """Exit code 0, a line for each part, and nothing was sent to the platform."""
    config = site.configure(platform.url)
    assert cli.main(["check", "-c", config.path]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["ok"] * len(lines)
    for part in ("uploader.yaml: ", "event database events: ", "newest event: ", "outbox folder: ",
                 "/outbox.db: ", "disk of the outbox: ", "p0: "):  # fmt: skip
        assert sum(part in line for line in lines) == 1, part
    platform.wait_until(lambda: platform.connections == 1)
    assert platform.received == 0


def test_it_leaves_no_trace(site, platform):
    """Neither outbox nor lock is made, and the event database stays as it is."""
    config = site.configure(platform.url)
    before = sizes(site.folder)
    assert cli.main(["check", "-c", config.path]) == 0
    assert sizes(site.outbox.parent) == {}
    assert sizes(site.folder) == before


def test_it_works_beside_a_running_daemon(site, platform):
    """Neither disturbs the other."""
    config = site.configure(platform.url)
    with Process(config) as daemon:
        daemon.wait_for("ready")
        platform.wait_for(1)
        assert cli.main(["check", "-c", config.path]) == 0
        site.add(2)
        platform.wait_for(2)


def test_the_shipped_file_passes_without_network(capsys):
    """On a machine that is no box: what is not there yet is a warning."""
    assert cli.main(["check", "--no-network", "-c", str(TOP / "uploader.yaml")]) == 0
    out = capsys.readouterr().out
    assert "gateway.dev_sno is not filled in" in out
    assert "FAIL" not in out


def test_without_network_nothing_is_connected_to(site, platform):
    """Neither endpoints nor databases of other machines, nor capture devices."""
    report = {
        "endpoints": [{"url": platform.url, "name": "status"}],
        "sub_devices": [{"ep_ip": "127.0.0.1", "probe": f"tcp:{platform.port}"}],
    }
    config = site.configure(platform.url, device_status=report)
    levels = {one.part: one.level for one in check.run(config, network=False)}
    assert (levels["p0"], levels["status"], levels["status report"]) == ("skip",) * 3
    assert platform.connections == 0
    remote = site.configure(platform.url, source={"url": "mysql://u:p@127.0.0.1:9/db"})
    assert found(remote, "event database events", network=False)[0][0] == "skip"


def test_a_wrong_file_is_78_with_every_mistake(site, platform, capsys):
    """As run itself would refuse it."""
    config = site.configure(platform.url)
    path = Path(config.path)
    path.write_text(path.read_text() + "log: {level: loud, shape: text}\n")
    assert cli.main(["check", "-c", config.path]) == 78
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 2
    assert all(error.startswith(f"{config.path}:") for error in errors)


def test_personal_data_is_shown_only_when_asked_for(site, platform, capsys):
    """Then the event as it would be sent, with the picture cut."""
    config = site.configure(platform.url)
    cli.main(["check", "-c", config.path])
    out = capsys.readouterr().out
    assert "s3cret" not in out
    assert PICTURE[:16] not in out
    assert "1 event" not in out
    cli.main(["check", "-c", config.path, "--show-payload"])
    out = capsys.readouterr().out
    assert '"identity_name": "王s3cret"' in out
    assert f'"spot_pic": "{PICTURE[:16]}… ({len(PICTURE)} characters)"' in out
    assert PICTURE not in out


def test_the_status_report_is_shown_as_it_would_be_sent(site, platform, capsys):
    """Valid against the protocol, with the capture devices probed; line by line if asked for."""
    report = {
        "endpoints": [{"url": platform.url, "name": "status"}],
        "sub_devices": [{"ep_ip": "127.0.0.1", "probe": f"tcp:{platform.port}"},
                        {"ep_ip": "127.0.0.2", "probe": "tcp:9"}],
    }  # fmt: skip
    config = site.configure(platform.url, device_status=report)
    schema = TOP / "se3_uploader/receiver/schemas/device_status.schema.json"
    protocol = Draft202012Validator(json.loads(schema.read_text()))
    cli.main(["check", "-c", config.path])
    *_, line = capsys.readouterr().out.splitlines()
    said, report = line.split("online: ")
    assert said.endswith("can be made, 1 of 2 capture devices ")
    protocol.validate(json.loads(report))
    cli.main(["check", "-c", config.path, "--show-payload"])
    out = capsys.readouterr().out
    protocol.validate(json.loads(out[out.index('{\n  "gateway_ip"') :]))


def test_what_is_missing_from_a_report_is_told(site, platform):
    """It is sent all the same; a table that is not there is a mistake of the configuration."""
    config = site.configure(
        platform.url,
        gateway={"dev_sno": "BOX", "data_partition": "/no/such/place"},
        device_status={"endpoints": [{"url": platform.url, "name": "status"}],
                       "sub_devices_table": "cameras"},
    )  # fmt: skip
    levels = {text: level for level, text in found(config, "status report")}
    assert any("/no/such/place" in text and level == "warn" for text, level in levels.items())
    ((said, level),) = [(t, lv) for t, lv in levels.items() if "devices cannot be read" in t]
    assert (level, "cameras" in said) == ("FAIL", True)
    for network in (True, False):
        assert found(config, "data partition", network=network)[0][0] == "warn"


# The event database


def test_an_event_database_that_is_not_there(site, platform):
    """A problem, but at the start of the service, which waits for it, only a warning."""
    config = site.configure(platform.url)
    site.events.unlink()
    ((level, said),) = found(config, "event database events")
    assert (level, said) == ("FAIL", f"{site.events} is not there")
    assert cli.main(["check", "-c", config.path]) == 1
    assert found(config, "event database events", network=False)[0][0] == "warn"
    assert cli.main(["check", "--no-network", "-c", config.path]) == 0


def test_a_column_to_be_kept_that_is_not_there(site, platform):
    """A misspelt name in ignore_columns would let the column leave the box."""
    config = site.configure(platform.url, source={"ignore_columns": ["phon", "ep_id"]})
    ((level, said),) = found(config, "event database events")
    assert level == "FAIL"
    assert said.startswith("phon: there is no such column")


@pytest.mark.parametrize(
    ("sql", "text"),
    [
        ("ALTER TABLE event RENAME TO events", "no such table: event; is source.table right?"),
        ("ALTER TABLE event RENAME score TO points", "score: there is no such column"),
    ],
)
def test_a_table_that_does_not_fit_fails(site, platform, capsys, sql, text):
    """What is wrong, and which setting is about it."""
    config = site.configure(platform.url)
    site.run(sql)
    assert cli.main(["check", "-c", config.path]) == 1
    assert text in capsys.readouterr().out


def test_a_file_that_is_no_database_fails(site, platform):
    """The driver's words and a hint."""
    config = site.configure(platform.url)
    site.events.write_bytes(b"\0" * 4096 + b"no database")
    ((level, said),) = found(config, "event database events")
    assert level == "FAIL"
    assert "not a database" in said


def test_an_event_that_cannot_be_sent_names_the_field_and_never_the_value(site, platform, capsys):
    """The next one like it would be a dead letter."""
    site.add(event(2, **SECRET, score="a lot of s3cret"))
    config = site.configure(platform.url)
    assert cli.main(["check", "-c", config.path]) == 1
    out = capsys.readouterr().out
    assert "newest event: cannot be sent: score: " in out
    assert "s3cret" not in out


def test_what_is_left_out_of_an_event_is_a_warning(site, platform):
    """A picture that is none does not keep the event from being sent."""
    site.add(event(2, spot_pic="no base64!", timestamp=int(time.time() * 1000)))
    ((level, said),) = found(site.configure(platform.url), "newest event")
    assert level == "warn"
    assert "without a picture" in said
    assert "spot_pic: left out" in said


@pytest.mark.parametrize("timestamp", [1_560_408, 9_999_999_999_999])
def test_a_time_that_cannot_be_is_a_warning(site, platform, timestamp):
    """Mostly the unit of the timestamp is not what was thought."""
    site.add(event(2, timestamp=timestamp))
    ((level, _),) = found(site.configure(platform.url), "newest event")
    assert level == "warn"


def test_an_empty_table_is_fine(site, platform):
    """Nothing happened yet."""
    site.remove()
    assert found(site.configure(platform.url), "newest event") == [("ok", "there is none yet")]


# The outbox


def test_a_folder_that_others_may_look_into_is_a_warning(site, platform):
    """Face pictures may come to lie there."""
    site.outbox.parent.chmod(0o755)
    ((level, said),) = found(site.configure(platform.url), "outbox folder")
    assert level == "warn"
    assert "others may look into it" in said


def test_a_folder_that_is_not_there_yet_is_fine_where_it_can_be_made(site, platform):
    """It is made at the first start, not by check."""
    site.outbox.parent.rmdir()
    ((level, said),) = found(site.configure(platform.url), "outbox folder")
    assert (level, said) == ("ok", f"{site.outbox.parent}: is made at the first start")
    assert not site.outbox.parent.exists()


def test_a_user_without_rights_is_told_what_is_missing(site, platform, tmp_path, capfd):
    """A folder of another user fails; one that cannot be made may yet be made by the service."""
    let_in(tmp_path)
    config = site.configure(platform.url)
    assert as_nobody(lambda: cli.main(["check", "-c", config.path])) == 1
    out = capfd.readouterr().out
    assert f"FAIL outbox folder: {site.outbox.parent}: cannot be written by nobody" in out
    site.outbox.parent.rmdir()
    assert as_nobody(lambda: cli.main(["check", "-c", config.path])) == 0
    assert "nobody cannot make it in" in capfd.readouterr().out


def test_root_is_told_that_the_service_is_another_user(site, platform):
    """What root may read, the service may not."""
    if os.geteuid() != 0:
        pytest.skip("only root can give files to other users")
    config = site.configure(platform.url)
    assert found(config, "user") == []
    os.chown(site.outbox.parent, 65534, 65534)
    ((level, said),) = found(config, "user")
    assert level == "warn"
    assert "the service runs as nobody" in said


def test_an_outbox_that_cannot_be_used_fails(site, platform):
    """A damaged one, one of a newer version, a symbolic link."""
    config = site.configure(platform.url)
    deliver(config)
    assert found(config, "outbox") == [("ok", f"{site.outbox}: can be read")]
    site.outbox.rename(site.folder / "real.db")
    site.outbox.symlink_to(site.folder / "real.db")
    assert found(config, "outbox")[0][0] == "FAIL"
    site.outbox.unlink()
    site.outbox.write_bytes(b"SQLite format 3\0" + b"\xff" * 4096)
    ((level, said),) = found(config, "outbox")
    assert level == "FAIL"
    assert "damaged" in said


def test_little_room_on_the_disk_is_a_warning(site, platform):
    """Events wait in their database then, which the box prunes."""
    config = site.configure(
        platform.url, outbox={"path": str(site.outbox), "min_free_disk": "1000TiB"}
    )
    ((level, said),) = found(config, "disk of the outbox")
    assert level == "warn"
    assert "less than 1000TiB" in said


# The endpoints


def test_a_platform_that_is_away_fails(site, capsys):
    """With what came back, and what to do about it."""
    config = site.configure("http://127.0.0.1:9/HistoryEvent")
    assert cli.main(["check", "-c", config.path]) == 1
    line = (
        "FAIL p0: 127.0.0.1:9: Connection refused -> start the platform, or correct host and port"
    )
    assert line in capsys.readouterr().out


def test_a_token_file_that_is_missing_fails_before_anything_is_connected_to(site, platform):
    """The file is named."""
    config = site.configure(platform.url, endpoint={"auth": {"bearer_file": "/no/token"}})
    ((level, said),) = found(config, "p0")
    assert level == "FAIL"
    assert said.startswith("/no/token: No such file")
    assert platform.connections == 0


def test_a_secret_that_everybody_may_read_is_a_warning(site, platform, tmp_path, capsys):
    """Its file is named, its content never shown."""
    token = tmp_path / "token"
    token.write_text("s3cret-token")
    token.chmod(0o604)
    config = site.configure(platform.url, endpoint={"auth": {"bearer_file": str(token)}})
    assert cli.main(["check", "-c", config.path]) == 0
    out = capsys.readouterr().out
    assert f"warn p0: {token}: everybody may read this secret -> chmod o-rwx {token}" in out
    assert "s3cret" not in out


@pytest.fixture
def authority(tmp_path):
    """A certificate authority, which the file ca.pem lets the uploader trust."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    return authority


def secure(certificate: trustme.LeafCert) -> ssl.SSLContext:
    """The platform's side of TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    return context


@pytest.mark.parametrize(("days", "level"), [(90, "ok"), (29, "warn")])
def test_a_certificate_is_told_with_its_end(site, tmp_path, authority, days, level):
    """A month ahead it is a warning, so that there is time to renew it."""
    until = datetime.now(timezone.utc) + timedelta(days=days)
    tls = {"ca_file": str(tmp_path / "ca.pem")}
    with Server(tls=secure(authority.issue_cert("127.0.0.1", not_after=until))) as platform:
        config = site.configure(platform.url, endpoint={"tls": tls})
        ((found_level, said),) = found(config, "p0")
        assert platform.received == 0
    assert found_level == level
    assert f"its certificate is good until {until.astimezone():%Y-%m-%d}" in said


def test_a_platform_that_cannot_prove_itself_fails(site, authority):
    """Its certificate comes from an authority nobody here knows."""
    with Server(tls=secure(authority.issue_cert("127.0.0.1"))) as platform:
        findings = check.run(site.configure(platform.url))
        (finding,) = [one for one in findings if one.part == "p0"]
    assert finding.level == "FAIL"
    assert "certificate refused" in finding.said
    assert "tls.ca_file" in finding.advice


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_client_certificate_that_the_platform_misses_fails(site, tmp_path, authority, version):
    """Also with TLS 1.3, where the handshake is over before the platform says so."""
    context = secure(authority.issue_cert("127.0.0.1"))
    context.minimum_version = context.maximum_version = version
    context.verify_mode = ssl.CERT_REQUIRED
    authority.configure_trust(context)
    tls = {"ca_file": str(tmp_path / "ca.pem")}
    with Server(tls=context) as platform:
        ((level, said),) = found(site.configure(platform.url, endpoint={"tls": tls}), "p0")
        assert level == "FAIL"
        assert "no secure connection" in said
        own = authority.issue_cert("box.example")
        own.private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "own.pem"))
        tls["cert_file"] = str(tmp_path / "own.pem")
        config = site.configure(platform.url, endpoint={"tls": tls})
        assert found(config, "p0")[0][0] == "ok"


def test_what_is_configured_less_safe_than_it_could_be_is_a_warning(site, authority):
    """Unverified TLS, and plain text that was allowed."""
    with Server(tls=secure(authority.issue_cert("127.0.0.1"))) as platform:
        config = site.configure(platform.url, endpoint={"tls": {"verify": False}})
        assert [level for level, _ in found(config, "p0")] == ["warn", "ok"]
    with Server() as platform:
        config = site.configure(platform.url, endpoint={"allow_plaintext": True})
        assert [level for level, _ in found(config, "p0")] == ["warn", "ok"]


def test_a_proxy_is_what_is_connected_to(site, platform):
    """It is named as such; for http nothing more can be tried without sending."""
    proxy = f"http://127.0.0.1:{platform.port}"
    config = site.configure("http://192.168.255.254/HistoryEvent", endpoint={"proxy": proxy})
    ((level, said),) = found(config, "p0")
    assert level == "ok"
    assert said.startswith(f"the proxy 127.0.0.1:{platform.port} can be connected to")
