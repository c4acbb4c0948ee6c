"""How a backfill speaks: its mistakes, its plan, its progress, its summary."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import List

import pytest

from .backfills import BASE, backfill, end, filled, span, start
from .http_server import Reply, Server
from .site import Site, deliver, event, numbers, refusing
from .terminals import TOP, on_a_terminal

WRONG = {
    "reversed": (span(9, 5), "is not before"),
    "empty": (span(5, 5), "is not before"),
    "no time": (["--since", "yesterday", "--until", "-0s"], "--since yesterday is no time"),
    "no day": (["--since", "2026-02-30", "--until", "-0s"], "is no time that exists"),
    "far": (["--since", "-2d", "--until", "999999999999999"], "is too far away"),
    "rate 0": ([*span(1, 5), "--rate", "0"], "--rate must be"),
    "rate nan": ([*span(1, 5), "--rate", "nan"], "--rate must be"),
    "rate text": ([*span(1, 5), "--rate", "fast"], "--rate"),
    "endpoint": ([*span(1, 5), "--endpoint", "nowhere"], "no endpoint nowhere; known are: p0"),
    "pictures": ([*span(1, 5), "--pictures", "small"], "--pictures"),
    "no since": (["--until", "-0s"], "--since"),
}


@pytest.mark.parametrize("words", WRONG)
def test_mistakes_are_told_in_a_sentence(tmp_path: Path, words: str) -> None:
    """A wrong range, time, rate or name ends with 2 and says what is wrong; nothing is made."""
    config = Site(tmp_path).configure("http://127.0.0.1:9/")
    options, sentence = WRONG[words]
    done = backfill(config, *options)
    assert done.code == 2
    assert sentence in done.err
    assert "Traceback" not in done.err
    assert not (tmp_path / "state").exists()


def test_dry_run_writes_nothing(tmp_path: Path) -> None:
    """It makes no outbox where there is none, and changes none that is there."""
    site = filled(tmp_path, 5)
    with Server() as platform:
        config = site.configure(platform.url)
        done = end(start(config, *span(1, 4), "--dry-run"))
        assert done.code == 0
        assert "p0: 3 events in the database; to send: 3, about" in done.out
        assert not site.outbox.parent.exists()
        deliver(config)
        before = {path.name: path.read_bytes() for path in site.outbox.parent.iterdir()}
        again = end(start(config, *span(1, 2), "--dry-run", "--resend"))
        assert again.code == 0
        assert "p0: 1 event in the database" in again.out
        after = {path.name: path.read_bytes() for path in site.outbox.parent.iterdir()}
        assert after["outbox.db"] == before["outbox.db"]
        assert not after.get("outbox.db-wal")
        assert len(platform.requests) == 5


def test_range_without_events_says_so(tmp_path: Path) -> None:
    """An empty result is no mistake: it says so, ends with 0 and makes nothing."""
    site = filled(tmp_path, 5)
    done = end(start(site.configure("http://127.0.0.1:9/"), *span(100, 200)))
    assert done.code == 0
    assert "holds no events of that time: nothing to do" in done.out
    assert not site.outbox.parent.exists()


def test_plan_names_both_zones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Times without a zone are local, and the plan prints them in both zones."""
    monkeypatch.setenv("TZ", "Asia/Shanghai")
    config = filled(tmp_path, 5).configure("http://127.0.0.1:9/")
    done = end(start(config, "--since", "2026-01-01", "--until", "2026-01-02T00:00", "--dry-run"))
    assert "from 2026-01-01T00:00:00+08:00 (2025-12-31T16:00:00 UTC)" in done.out
    assert "to   2026-01-02T00:00:00+08:00 (2026-01-01T16:00:00 UTC)" in done.out
    assert "5 events in the database" in done.out


def test_bytes_of_uniform_rows_are_planned_within_a_fifth(tmp_path: Path) -> None:
    """The plan's bytes are those that arrive, for each endpoint by its own picture policy."""
    site = filled(tmp_path, 60, reg_pic=os.urandom(3000), spot_pic=os.urandom(20000))
    with Server() as whole, Server() as thin:
        config = site.configure(whole.url, thin.url)
        text = Path(config.path).read_text()
        at = text.index("name: p1")
        text = f"{text[:at]}pictures: {{spot_pic: strip}}\n    {text[at:]}"
        Path(config.path).write_text(text)
        done = backfill(config, *span(1, 61))
        assert done.code == 0
        for platform, planned in zip((whole, thin), done.plan["endpoints"]):
            arrived = sum(len(request.body) for request in platform.requests)
            assert 0.8 * arrived < planned["bytes"] < 1.2 * arrived
        assert 10 * len(thin.requests[0].body) < 2 * len(whole.requests[0].body)


def test_progress_as_json_adds_up(tmp_path: Path) -> None:
    """--json gives one object a line: the plan, progress with all figures, the summary."""
    site = filled(tmp_path, 200)
    with Server(refusing([3, 4], Reply(422))) as platform:
        config = site.configure(platform.url, retry={"base": 0.01, "reject_after": 1})
        done = backfill(config, *span(1, 201), "--rate", "80", every=0.3)
    progress = done.objects("progress")
    assert len(progress) > 3
    assert [each["done"] for each in progress] == sorted(each["done"] for each in progress)
    last = progress[-1]
    assert last["total"] == 200
    assert 0 < last["done"] <= 200
    assert last["failed"] == 2
    each = done.plan["endpoints"][0]["bytes"] / 200
    assert last["bytes"] == pytest.approx(last["done"] * each, rel=0.01)
    assert 20 < last["per_second"] < 120
    assert 0 <= last["seconds_left"] < 60
    assert done.summary == {"p0": {"delivered": 198, "dead": 2}}
    assert done.code == 1


def test_lines_where_there_is_no_terminal(tmp_path: Path) -> None:
    """Into a file or the journal goes a line once a while, with the figures and the trouble."""
    config = filled(tmp_path, 50).configure("http://127.0.0.1:9/")
    done = end(start(config, *span(1, 51), patience=2.0, every=0.4))
    lines = [line for line in done.out.splitlines() if " done, " in line]
    assert len(lines) >= 3
    assert re.fullmatch(
        r"0 of 50 done, 50 queued, 0 failed, 0\.0 a second, about 0B, time left unknown"
        r" \(p0: .*refused.*\)",
        lines[-1],
    )
    assert done.code == 75


def test_bar_on_a_terminal(tmp_path: Path) -> None:
    """On a terminal there is a bar with count, rate, bytes, time left and failures."""
    site = filled(tmp_path, 60)
    with Server() as platform:
        config = site.configure(platform.url)
        shown = on_a_terminal("backfill", "-c", config.path, *span(1, 61), "--rate", "30")
    shown = re.sub(r"\x1b\[[0-9;?]*\w", "", shown)
    assert "━" in shown
    assert re.search(r"\d+/60 \d+/s [\d.]+\w*B \S+ left 0 failed", shown)
    assert "60/60" in shown
    assert "p0: of the range 60 delivered" in shown


def test_relative_times_mean_the_same_after_an_interruption(tmp_path: Path) -> None:
    """The words of an interrupted backfill stand for the range of the first time, not a new one."""
    now = time.time() * 1000
    site = Site(tmp_path)
    site.add(*(event(n, timestamp=int(now - 2000 + n)) for n in range(1, 6)))
    config = site.configure("http://127.0.0.1:9/")
    assert backfill(config, "--since", "-1h", "--until", "-0s", patience=0.5).code == 75
    site.add(event(6, timestamp=int(time.time() * 1000 + 500)))
    with Server() as platform:
        site.configure(platform.url)
        done = backfill(config, "--since", "-1h", "--until", "-0s")
        assert sorted(numbers(platform)) == [1, 2, 3, 4, 5]
        assert done.summary == {"p0": {"delivered": 5}}


def test_no_row_is_taken_before_it_is_complete(tmp_path: Path) -> None:
    """With source.settle the newest rows are left to the daemon: their pictures may be missing."""
    site = Site(tmp_path)
    now = int(time.time() * 1000)
    site.add(event(1, timestamp=now - 120_000), event(2, timestamp=now))
    with Server() as platform:
        config = site.configure(platform.url, source={"settle": 60})
        assert backfill(config, "--since", "-1h", "--until", "-0s").code == 0
        assert numbers(platform) == [1]


def unit_command(config: str, instance: str, **variables: str) -> List[str]:
    """The ExecStart line of the backfill unit as systemd expands it."""
    (line,) = (
        line.partition("=")[2]
        for line in (TOP / "systemd" / "se3-uploader-backfill@.service").read_text().splitlines()
        if line.startswith("ExecStart=")
    )
    values = {"SINCE": instance, "UNTIL": "-0s", "OPTIONS": "", **variables}
    words = line.replace("/etc/se3-uploader/uploader.yaml", config).split()[1:]
    expanded: List[str] = []
    for word in words:
        if word == "$OPTIONS":
            expanded += values["OPTIONS"].split()
        else:
            expanded.append(re.sub(r"\$\{(\w+)\}", lambda found: values[found[1]], word))
    return expanded


def test_command_line_of_the_unit(tmp_path: Path) -> None:
    """What the systemd unit runs is understood, with and without a file of options."""
    site = Site(tmp_path)
    site.add(event(1, timestamp=int(time.time() * 1000) - 1000))
    with Server() as platform:
        config = site.configure(platform.url)
        for words in (
            unit_command(config.path, "-2d"),
            unit_command(
                config.path, "march", SINCE=str(BASE), UNTIL="-0s", OPTIONS="--rate 5 --resend"
            ),
        ):
            subprocess.run([sys.executable, "-m", "se3_uploader", *words], cwd=TOP, check=True)
        assert numbers(platform) == [1, 1]
