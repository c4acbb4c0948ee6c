"""What stands around the agent inside a box: its event database, its platform, its settings."""

from __future__ import annotations

import json
from types import TracebackType
from typing import Any, Dict, List, Optional, Set, Type

from .container import Box, wait_for

EVENTS = "http://127.0.0.1:9528/HistoryEvent"
LISTENS = "0100007F:2538 00000000:0000 0A"
SETTINGS: Dict[str, Any] = {
    "gateway": {"dev_sno": "TEST", "data_partition": "/"},
    "source": {"url": "sqlite:////data/sophon/event.db", "poll_interval": 0.2},
    "history_event": {"endpoints": [{"url": EVENTS, "name": "platform"}]},
    "retry": {"base": 0.2, "cap": 1},
    "outbox": {"min_free_disk": 0},
}


class Site:
    """Platform, engine and settings, made anew for each test."""

    def __init__(self, box: Box) -> None:
        """Say in which box."""
        self.box = box

    def __enter__(self) -> Site:
        """Start the platform; the agent stays stopped and has no outbox."""
        self.box.sh(
            "rm -rf /var/lib/se3-uploader /data /run/platform"
            " /run/systemd/system/se3-uploader*.service.d; systemctl daemon-reload;"
            "systemd-run -q --unit=platform python3 /inside/platform.py"
        )
        wait_for("the platform", lambda: LISTENS in self.box.sh("cat /proc/net/tcp"))
        self.settings(SETTINGS)
        return self

    def __exit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        """Stop everything and leave nothing behind for the next test."""
        if error is not None:
            print(self.box.journal())
        units = "se3-uploader-again se3-uploader platform engine"
        self.box.sh(f"systemctl stop {units}; systemctl reset-failed", check=False)

    def settings(self, settings: Any) -> None:
        """Write uploader.yaml (JSON is YAML)."""
        text = settings if isinstance(settings, str) else json.dumps(settings)
        path = "/etc/se3-uploader/uploader.yaml"
        self.box.run("sh", "-ec", f'printf %s "$1" >{path}', "-", text)

    def drop_in(self, text: str, unit: str = "se3-uploader") -> None:
        """Change a unit until the end of the test."""
        folder = f"/run/systemd/system/{unit}.service.d"
        self.box.run(
            "sh", "-ec", f'mkdir -p {folder}; printf %s "$1" >{folder}/test.conf;'
            "systemctl daemon-reload", "-", text,
        )  # fmt: skip

    def events(self, count: int, first: int = 1, per_second: float = 0) -> None:
        """Have the engine write events (count 0: for ever); it keeps its database open."""
        self.box.sh(
            "systemctl stop engine 2>/dev/null || true; systemctl reset-failed engine"
            " 2>/dev/null || true; systemd-run -q --unit=engine"
            f" python3 /inside/engine.py {first} {count} {per_second}"
        )
        if count and not per_second:
            wait_for("the events are written", lambda: self.rows() >= first + count - 1)

    def rows(self) -> int:
        """How many events the database holds."""
        return int(
            self.box.sh(
                'test -e /data/sophon/event.db-wal || { echo 0; exit 0; }; python3 -c "import'
                " sqlite3; print(sqlite3.connect('/data/sophon/event.db').execute("
                "'SELECT count(*) FROM event').fetchone()[0])\" 2>/dev/null || echo 0"
            )
        )

    def answers(self, status: int, seconds: float = 0) -> None:
        """Have the platform answer like this from now on."""
        self.box.sh(f"echo {status} {seconds} >/run/platform/new; mv /run/platform/new"
                    " /run/platform/answer")  # fmt: skip

    def accepted(self, path: str = "/HistoryEvent") -> List[Dict[str, Any]]:
        """What the platform accepted, in its order."""
        lines = self.box.sh("cat /run/platform/accepted 2>/dev/null || true").splitlines()
        rows = [json.loads(line) for line in lines]
        return [row for row in rows if row["path"] == path]

    def arrive(self, count: int, seconds: float = 30) -> None:
        """Wait until the events 1 to count arrived, and hold that none came under two keys."""
        wait_for(f"{count} events at the platform", lambda: len(self.keys()) >= count, seconds)
        assert len(self.keys()) == count
        assert {row["event"] for row in self.accepted()} == {str(n + 1) for n in range(count)}

    def keys(self) -> Set[str]:
        """The idempotency keys of the events that the platform accepted."""
        return {row["key"] for row in self.accepted()}

    def start(self) -> None:
        """Start the agent; returns once it is READY."""
        self.box.run("systemctl", "start", "se3-uploader")
