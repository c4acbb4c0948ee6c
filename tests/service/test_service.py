from __future__ import annotations

import copy
import json
import time
from typing import Any, Dict, List

from .conftest import readme_command
from .container import Box, wait_for
from .site import EVENTS, SETTINGS, Site


def settings(**endpoint: Any) -> Dict[str, Any]:
    """The settings of the site with changes to its endpoint."""
    changed = copy.deepcopy(SETTINGS)
    changed["history_event"]["endpoints"][0].update(endpoint)
    return changed


def test_from_bare_debian_to_a_running_service_in_two_commands(bare: Box, installed: Box) -> None:
    """The README's own two: the first one installs and enables, the second fills in and starts.

    For nano stands a program that types the smallest settings into the file.
    """
    assert bare is installed
    assert installed.run("systemctl", "is-enabled", "se3-uploader").strip() == "enabled"
    assert installed.show("ActiveState") == "inactive"
    assert "se3-events" in installed.run("id", "se3-uploader")
    assert installed.run("stat", "-c", "%a %U:%G", "/etc/se3-uploader/uploader.yaml").split() == [
        "640",
        "root:se3-uploader",
    ]
    with Site(installed) as site:
        site.events(3)
        installed.sh(readme_command("nano"))
        assert installed.show("ActiveState") == "active"
        site.arrive(3)
    assert installed.run("stat", "-c", "%a %U", "/var/lib/se3-uploader").split() == [
        "700",
        "se3-uploader",
    ]


def test_systemd_finds_nothing_to_say_about_the_units(installed: Box) -> None:
    """systemd-analyze verify is silent, and the exposure is at most 1.5 of 10."""
    for unit in ("se3-uploader", "se3-uploader-again", "se3-uploader-backfill@-2d"):
        assert installed.run("systemd-analyze", "verify", f"{unit}.service") == ""
    for unit in ("se3-uploader", "se3-uploader-backfill@"):
        file = f"/lib/systemd/system/{unit}.service"
        installed.run("systemd-analyze", "security", "--offline=true", "--threshold=15", file)


def test_an_offline_platform_is_no_failed_start(site: Site) -> None:
    """READY comes without the platform, and the status line says what is pending."""
    site.answers(503)
    site.events(12)
    site.start()
    assert site.box.show("ActiveState") == "active"
    wait_for("the status line", lambda: "12 pending" in site.box.show("StatusText"))
    site.answers(200)
    site.arrive(12)
    assert site.box.show("NRestarts") == "0"


def test_a_start_waits_for_the_event_database(site: Site) -> None:
    """Where the engine has not made its database yet, the start takes a minute and says why.

    Then boot goes on, and the daemon, the same process, sends what comes at last.
    """
    site.box.run("systemctl", "start", "--no-block", "se3-uploader")
    wait_for("the reason", lambda: "/data/sophon/event.db" in site.box.show("StatusText"))
    assert site.box.show("ActiveState") == "activating"
    process = site.box.show("MainPID")
    site.box.run("systemctl", "start", "se3-uploader")  # returns with the start under way
    assert site.box.show("ActiveState") == "active"
    assert "/data/sophon/event.db" in site.box.show("StatusText")
    site.events(3)
    site.arrive(3)
    assert site.box.show("MainPID") == process


def test_a_reload_takes_effect_without_a_restart(site: Site) -> None:
    """An endpoint added to the file gets every event after SIGHUP; the process is the same one."""
    site.events(5)
    site.start()
    site.arrive(5)
    process = site.box.show("MainPID")
    both = settings()
    both["history_event"]["endpoints"].append({"url": EVENTS + "2", "name": "second"})
    site.settings(both)
    site.box.run("systemctl", "reload", "se3-uploader")
    site.events(5, first=6)
    site.arrive(10)
    wait_for("the new endpoint", lambda: len(site.accepted("/HistoryEvent2")) >= 5)
    assert site.box.show("MainPID") == process


def test_a_bad_file_changes_nothing(site: Site) -> None:
    """Every mistake of a broken file is in the journal, and the old configuration goes on."""
    site.events(5)
    site.start()
    site.arrive(5)
    process = site.box.show("MainPID")
    bad = settings(timeout={"connect": "soon"}, urll="x")
    site.settings(bad)
    site.box.run("systemctl", "reload", "se3-uploader")
    wait_for("the mistakes", lambda: "urll" in site.box.journal())
    assert "connect" in site.box.journal()
    site.events(5, first=6)
    site.arrive(10)
    assert site.box.show("MainPID") == process


def test_a_hundred_reloads_under_load_lose_and_repeat_nothing(site: Site) -> None:
    """Each event that the engine wrote meanwhile was accepted exactly once."""
    site.answers(200, 0.02)
    site.events(0, per_second=40)
    wait_for("the first event", lambda: site.rows() > 0)
    site.start()
    process = site.box.show("MainPID")
    for number in range(100):
        site.settings(settings(max_in_flight=1 + number % 4))
        site.box.run("systemctl", "reload", "se3-uploader")
    site.box.run("systemctl", "kill", "--signal=STOP", "engine")
    written = site.rows()
    site.answers(200)
    site.arrive(written, 60)
    assert len(site.accepted()) == written
    assert site.box.show("MainPID") == process


def test_the_watchdog_bites_on_a_hang(site: Site) -> None:
    """A process that stands still is killed and started again, and goes on where it was."""
    site.drop_in("[Service]\nWatchdogSec=3\nTimeoutAbortSec=1\nRestartSec=0.2\n")
    site.events(3)
    site.start()
    site.arrive(3)
    site.box.run("systemctl", "kill", "--signal=STOP", "se3-uploader")
    site.events(3, first=4)
    site.arrive(6)
    assert site.box.show("NRestarts") == "1"
    assert "watchdog" in site.box.journal().lower()


def test_kill_minus_nine_loses_nothing(site: Site) -> None:
    """Killed five times under load, the service comes back, and each event arrives.

    A request in flight at that moment may be repeated, under its own idempotency key.
    """
    site.drop_in("[Unit]\nStartLimitBurst=50\n[Service]\nRestartSec=0.1\n")
    site.answers(200, 0.02)
    site.events(400, per_second=50)
    wait_for("the first event", lambda: site.rows() > 0)
    site.start()
    for kill in range(5):
        wait_for("more events", lambda done=20 * (kill + 1): len(site.accepted()) > done)  # type: ignore[misc]
        site.box.run("systemctl", "kill", "--signal=KILL", "se3-uploader")
        # Until systemd has noticed the death, the unit still looks active.
        wait_for("the restart", lambda n=kill + 1: site.box.show("NRestarts") == str(n))  # type: ignore[misc]
        wait_for("the service", lambda: site.box.show("ActiveState") == "active")
    site.arrive(400, 60)


def test_a_wrong_configuration_waits_for_a_person(site: Site) -> None:
    """Exit code 78 is not tried again, neither by Restart= nor five minutes later."""
    site.events(1)
    site.settings("gateway: {}\n")
    site.box.run("systemctl", "start", "se3-uploader", check=False)
    wait_for("the end", lambda: site.box.show("ActiveState") == "failed")
    assert site.box.show("ExecMainStatus") == "78"
    assert site.box.show("NRestarts") == "0"
    assert site.box.show("ActiveState", "se3-uploader-again") == "inactive"
    assert "dev_sno" in site.box.journal()


def test_a_start_that_keeps_failing_is_tried_again_later(site: Site) -> None:
    """Five failures in a row end in a long pause, and after it the service starts by itself."""
    site.events(2)
    site.drop_in("[Service]\nRestartSec=0.1\nExecStart=\nExecStart=/bin/false\n")
    site.drop_in("[Service]\nEnvironment=PAUSE=3\n", "se3-uploader-again")
    site.box.run("systemctl", "start", "se3-uploader", check=False)
    again = "se3-uploader-again"
    wait_for("the pause", lambda: site.box.show("ActiveState", again) == "active", 60)
    assert site.box.show("NRestarts") == "5"
    site.drop_in("")
    site.arrive(2)
    assert site.box.show("ActiveState") == "active"


def test_a_stop_takes_less_than_ten_seconds(site: Site) -> None:
    """With requests in flight that nobody answers, the stop is clean and the events stay."""
    site.answers(200, 60)
    site.events(20)
    site.start()
    wait_for("pending events", lambda: "20 pending" in site.box.show("StatusText"))
    begin = time.monotonic()
    site.box.run("systemctl", "stop", "se3-uploader")
    assert time.monotonic() - begin < 10
    assert site.box.show("Result") == "success"
    site.answers(200)
    site.start()
    site.arrive(20)


def probe(site: Site) -> Dict[str, Any]:
    """What inside/probe.py could do in the sandbox of the service."""
    site.box.sh("touch /tmp/of-somebody-else")
    site.drop_in(
        "[Service]\nType=oneshot\nRestart=no\nWatchdogSec=0\nExecStartPre=\nExecStart=\n"
        "ExecStart=/usr/bin/python3 -I /inside/probe.py\n"
    )
    site.start()
    lines: List[str] = [line for line in site.box.journal().splitlines() if line[:2] == '{"']
    found: Dict[str, Any] = json.loads(lines[-1])
    return found


def test_the_sandbox_is_really_in_force(site: Site) -> None:
    """In the unit nothing can be written but the state folder, and what must not work does not."""
    found = probe(site)
    assert found.pop("user") != 0
    assert found == {
        "capabilities": "0000000000000000",
        "no_new_privileges": "1",
        "seccomp": "2",
        "writable": ["/var/lib/se3-uploader"],
        "sees_other_processes": False,
        "proc_stat": True,
        "netlink": True,
        "inotify": True,
        "packet_socket": False,
        "namespace": False,
        "mount": False,
        "executable_memory": False,
        "home": False,
        "shadow": False,
        "temporary_files_of_others": False,
    }


def test_a_token_comes_as_a_credential(site: Site) -> None:
    """A token that only root can read reaches the platform by LoadCredential= and no other way."""
    site.box.sh("umask 077; echo sesame >/etc/se3-uploader/token")
    site.drop_in("[Service]\nLoadCredential=token:/etc/se3-uploader/token\n")
    token = "/run/credentials/se3-uploader.service/token"
    site.settings(settings(auth={"bearer_file": token}))
    site.events(2)
    site.start()
    site.arrive(2)
    assert {row["authorization"] for row in site.accepted()} == {"Bearer sesame"}
    assert "sesame" not in site.box.journal()


def test_a_time_range_is_uploaded_by_a_unit_of_its_own(site: Site) -> None:
    """The template takes its range from the instance's name and runs beside the service."""
    latest = settings()
    latest["source"]["start"] = "latest"
    site.settings(latest)
    site.events(7)
    site.start()
    assert site.accepted() == []
    site.box.run("systemctl", "start", "se3-uploader-backfill@-2d")
    site.arrive(7)
    backfill = "se3-uploader-backfill@-2d"
    wait_for("the end", lambda: site.box.show("ActiveState", backfill) == "inactive")
    assert site.box.show("Result", backfill) == "success"


def test_the_device_status_is_read_inside_the_sandbox(site: Site) -> None:
    """Processor, memory, disk and network interfaces are all there in a report."""
    report = settings()
    report["device_status"] = {
        "interval": 1,
        "endpoints": [{"url": "http://127.0.0.1:9528/DeviceStatus"}],
    }
    report["gateway"].update(sn="SN", mac="e0:a5:09:00:0e:6d")
    site.settings(report)
    site.events(1)
    site.start()
    wait_for("a report", lambda: len(site.accepted("/DeviceStatus")) > 1)
    measured = site.accepted("/DeviceStatus")[1]["body"]["gateway_ext_data"]
    for reading in ("cpu_usage", "memory_size", "memory_usage", "disk_size", "disk_free_size"):
        assert measured[reading] >= 0
    assert "not complete" not in site.box.journal()
