"""uploader.yaml: where it is found and what it becomes, alone and with a profile."""

from __future__ import annotations

import re

import pytest

from se3_uploader import config
from tests.config_files import SMALLEST, problems, smallest, write


def test_the_smallest_file_takes_every_default(tmp_path):
    """Three values are enough; what they leave open is what the dataclasses say."""
    path = write(tmp_path, SMALLEST)
    assert config.load(path) == config.Config(
        path=path,
        gateway=config.Gateway(dev_sno="TJGSDX0001"),
        source=config.Source(url="sqlite:////data/event.db"),
        history_event=config.HistoryEvent(
            endpoints=(
                config.Endpoint(
                    kind="history_event",
                    url="http://192.168.1.19:9528/HistoryEvent",
                    name="192.168.1.19:9528/HistoryEvent",
                ),
            )
        ),
    )


def test_every_kind_of_value_arrives_in_its_shape(tmp_path):
    """Durations become seconds, sizes bytes, lists tuples, {file:} a reference, null a default."""
    loaded = config.load(
        write(
            tmp_path,
            smallest(
                gateway={"sn": {"file": "/proc/serial"}, "name": "门口"},
                source={"poll_interval": "500ms", "ignore_columns": ["a", "b"], "settle": 3},
                history_event={
                    "pictures": {"reg_pic": "strip", "when_absent": "empty"},
                    "endpoints": [
                        {
                            "url": "https://Platform.example/api?x=1",
                            "auth": {"bearer_file": "/t", "basic_file": None},
                            "timeout": {"total": "1m"},
                            "accept": {"status": 0},
                            "pictures": {"when_absent": "omit", "spot_pic": "small"},
                            "max_in_flight": 1,
                        }
                    ],
                },
                device_status={
                    "endpoints": None,
                    "sub_devices": [{"ep_ip": "192.168.1.101", "probe": "seen:10m"}],
                },
                outbox={"max_size": "1GiB", "keep_delivered": "1d"},
                metrics={"listen": "[::1]:9529"},
            ),
        )
    )
    (sent,) = loaded.endpoints
    assert loaded.gateway.sn == config.FromFile("/proc/serial")
    assert loaded.gateway.name == "门口"
    assert (loaded.source.poll_interval, loaded.source.settle) == (0.5, 3.0)
    assert loaded.source.ignore_columns == ("a", "b")
    assert sent.name == "platform.example/api"
    assert sent.auth == config.Auth(bearer_file="/t")
    assert sent.timeout == config.Timeout(total=60.0)
    assert (sent.accept, sent.max_in_flight) == ({"status": 0}, 1)
    assert sent.pictures == config.Pictures(reg_pic="strip", spot_pic="small", when_absent="omit")
    assert loaded.device_status.sub_devices == (
        config.SubDevice(ep_ip="192.168.1.101", probe="seen:10m"),
    )
    assert (loaded.outbox.max_size, loaded.outbox.keep_delivered) == (1024**3, 86400.0)
    assert loaded.metrics.listen == "[::1]:9529"


def test_a_section_without_keys_is_all_defaults(tmp_path):
    """A section all of whose keys are commented out, at any depth, is as if it were not there."""
    text = SMALLEST.replace('HistoryEvent"}', 'HistoryEvent", tls: , auth: , headers: }')
    loaded = config.load(write(tmp_path, text + "retry:\noutbox:\ndevice_status:\n"))
    assert loaded == config.load(write(tmp_path, SMALLEST))


def test_passwords_stay_out_of_a_repr(tmp_path):
    """A traceback that shows a configuration shows no password of the urls and no header."""
    text = smallest(
        source={"url": "mysql://box:hunter2@localhost/db"},
        history_event={
            "endpoints": [
                {
                    "url": "https://a.example/?token=hunter2",
                    "proxy": "http://u:hunter2@proxy:3128",
                    "headers": {"X-Key": "hunter2"},
                }
            ]
        },
    )
    assert "hunter2" not in repr(config.load(write(tmp_path, text)))


# --- profiles ---


@pytest.fixture
def profile(tmp_path):
    """Writes a profile beside uploader.yaml and gives its name."""

    def write_profile(text: str) -> str:
        (tmp_path / "site.yaml").write_text(text, "utf-8")
        return "site.yaml"

    return write_profile


def test_what_the_user_writes_wins_over_the_profile(tmp_path, profile):
    """Single keys replace, columns merge by field, ignored columns add up."""
    name = profile(
        "table: comparison\nkey: seq\npictures_dir: /pictures\n"
        "columns: {score: similarity, identity_id: person}\nignore_columns: [feature, raw]\n"
    )
    source = config.load(
        write(
            tmp_path,
            smallest(
                source={
                    "profile": name,
                    "key": "number",
                    "pictures_dir": None,
                    "columns": {"score": "points"},
                    "ignore_columns": ["raw", "note"],
                }
            ),
        )
    ).source
    assert (source.table, source.key, source.pictures_dir) == ("comparison", "number", None)
    assert source.columns == {"score": "points", "identity_id": "person"}
    assert source.ignore_columns == ("feature", "raw", "note")


@pytest.mark.parametrize(
    ("theirs", "user", "expected"),
    [
        ("table: a", {"query": "SELECT 1"}, (None, "SELECT 1")),
        ("query: SELECT 1", {"table": "a"}, ("a", None)),
        ("query: SELECT 1", {}, (None, "SELECT 1")),
        ("key: a", {}, ("event", None)),
    ],
)
def test_table_and_query_replace_each_other(tmp_path, profile, theirs, user, expected):
    """Of table and query, the one the user writes makes the other of the profile fall away."""
    source = config.load(
        write(tmp_path, smallest(source={"profile": profile(theirs), **user}))
    ).source
    assert (source.table, source.query) == expected


@pytest.mark.parametrize("name", ["se3", "sophon-gate"])
def test_the_profiles_of_the_package_are_good(tmp_path, name):
    """Each profile that the schema names is there and passes its own check."""
    assert config.load(write(tmp_path, smallest(source={"profile": name}))).source.table


def test_mistakes_of_a_profile_carry_its_own_name_and_lines(tmp_path, profile):
    """They come together with those of uploader.yaml itself."""
    name = profile("key: [1]\nurl: sqlite:////x\ncolums: {}\n")
    path = write(tmp_path, smallest(source={"profile": name}, log={"level": "loud"}))
    with pytest.raises(config.ConfigError) as caught:
        config.load(path)
    own, *theirs = caught.value.problems
    assert re.match(rf"{path}:\d+: log.level: ", own)
    assert [problem.split(": ")[:2] for problem in theirs] == [
        [f"{tmp_path}/site.yaml:1", "key"],
        [f"{tmp_path}/site.yaml:2", "url"],
        [f"{tmp_path}/site.yaml:3", "colums"],
    ]


def test_a_profile_that_is_not_there_is_told_with_those_that_are(tmp_path):
    """A misspelt name of a profile reads as a path, so the message names both."""
    (problem,) = problems(tmp_path, smallest(source={"profile": "sophon"}))
    assert "cannot be read: No such file" in problem
    assert re.match(r"\d+: source.profile: ", problem)
    assert "it takes se3, sophon-gate or the path of a file" in problem


# --- where the file is ---


def test_the_file_is_looked_for_in_the_promised_order(tmp_path, monkeypatch):
    """-c wins over the environment, that over the working folder, that over /etc."""
    here, etc = tmp_path / "here", tmp_path / "etc"
    for folder in (here, etc):
        folder.mkdir()
        (folder / "uploader.yaml").touch()
    monkeypatch.setattr(config, "PLACES", ("./uploader.yaml", str(etc / "uploader.yaml")))
    monkeypatch.chdir(here)
    monkeypatch.setenv("SE3_UPLOADER_CONFIG", "from-environment.yaml")
    assert config.find("given.yaml") == "given.yaml"
    assert config.find(None) == "from-environment.yaml"
    monkeypatch.delenv("SE3_UPLOADER_CONFIG")
    assert config.find(None) == "./uploader.yaml"
    monkeypatch.chdir(tmp_path)
    assert config.find(None) == str(etc / "uploader.yaml")


def test_a_file_that_is_nowhere_is_told_with_the_places(tmp_path, monkeypatch):
    """The message names every place where the file could have been."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SE3_UPLOADER_CONFIG", raising=False)
    monkeypatch.setattr(config, "PLACES", ("./uploader.yaml", str(tmp_path / "etc.yaml")))
    with pytest.raises(config.ConfigError) as caught:
        config.find(None)
    for place in ("-c", "$SE3_UPLOADER_CONFIG", *config.PLACES):
        assert place in str(caught.value)
