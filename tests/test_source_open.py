"""Opening a source imports the one driver that it needs, and says what is missing."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from se3_uploader import config
from se3_uploader.source import SourceError, open_source


def run(code: str) -> str:
    """Run code in a Python of its own and return what it printed."""
    command = [sys.executable, "-c", textwrap.dedent(code)]
    root = Path(__file__).parents[1]
    return subprocess.run(command, check=True, capture_output=True, text=True, cwd=root).stdout


@pytest.mark.parametrize(
    ("url", "driver", "extra"),
    [
        ("mysql://box:s3cret@localhost/events", "pymysql", "mysql"),
        ("postgresql://box:s3cret@localhost/events", "psycopg2", "postgres"),
        ("mongodb://box:s3cret@localhost/events", "pymongo", "mongo"),
    ],
)
def test_a_driver_that_is_not_installed(url: str, driver: str, extra: str) -> None:
    """The error names the extra to install, and not the password."""
    said = run(f"""
        import sys
        sys.modules[{driver!r}] = None
        from se3_uploader import config
        from se3_uploader.source import SourceError, open_source
        try:
            open_source(config.Source(url={url!r}))
        except SourceError as error:
            print(error)
    """)
    assert f"pip install 'se3-uploader[{extra}]'" in said
    assert "s3cret" not in said


def test_sqlite_imports_no_other_engine() -> None:
    """What a daemon on SQLite keeps in memory holds nothing of the others, nor of inspect."""
    modules = run("""
        import sys
        from se3_uploader import config
        from se3_uploader.source import open_source
        open_source(config.Source(url="sqlite:////nowhere"))
        print(*sys.modules)
    """).split()
    unwanted = {"pymongo", "bson", "playhouse.db_url", "se3_uploader.source.inspect"}
    unwanted |= {f"se3_uploader.source.{name}" for name in ("mysql", "postgresql", "mongodb")}
    assert not unwanted & set(modules)


def test_an_unknown_kind_of_database() -> None:
    """The error lists the kinds that are known."""
    with pytest.raises(SourceError, match="sqlite, mysql, postgresql, mongodb"):
        open_source(config.Source(url="oracle://localhost/events"))


@pytest.mark.parametrize(("scheme", "driver"), [("mysql", "pymysql"), ("postgresql", "psycopg2")])
def test_a_server_without_a_database(scheme: str, driver: str) -> None:
    """A url that names no database is refused with advice, without repeating it."""
    pytest.importorskip(driver)
    with pytest.raises(SourceError, match="names no database") as error:
        open_source(config.Source(url=f"{scheme}://box:s3cret@127.0.0.1")).newest()
    assert "s3cret" not in str(error.value)
