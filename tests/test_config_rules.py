"""Every mistake in uploader.yaml is told, once, with its line, and without repeating a secret."""

from __future__ import annotations

import re

import pytest

from se3_uploader import config
from tests.config_files import SMALLEST, endpoint, problems, smallest, write

MISTAKES = {
    "unknown section": (
        smallest(gatway={}),
        ["gatway: is an unknown key (did you mean gateway?), allowed: gateway, source, "],
    ),
    "unknown key": (
        smallest(source={"pol_interval": 1}),
        ["source.pol_interval: is an unknown key (did you mean poll_interval?), allowed: name, "],
    ),
    "required keys": (
        "source: {}\nhistory_event: {endpoints: [{}]}",
        [
            "gateway: is missing and must be given",
            "source.url: is missing and must be given",
            "history_event.endpoints[0].url: is missing and must be given",
        ],
    ),
    "a required section without keys": (
        SMALLEST.replace("{dev_sno: TJGSDX0001}", ""),
        ["gateway.dev_sno: is missing and must be given"],
    ),
    "no endpoint": (
        smallest(history_event={"endpoints": []}),
        ["history_event.endpoints: must not be empty"],
    ),
    "a number for text": (
        smallest(gateway={"dev_sno": 5}),
        ["gateway.dev_sno: must be text; put it in quotes"],
    ),
    "text for a list": (
        smallest(source={"ignore_columns": "a"}),
        ["source.ignore_columns: must be a list (- item)"],
    ),
    "text for a mapping": (
        endpoint(headers="X-Token: hunter2"),
        ["history_event.endpoints[0].headers: must be a mapping (key: value)"],
    ),
    "a near miss of a choice": (
        smallest(log={"level": "warn"}),
        ["log.level: must be one of debug, info, warning, error (did you mean warning?)"],
    ),
    "a choice that needs quotes": (
        smallest(device_status={"sub_devices": [{"ep_ip": "10.0.0.1", "ep_type": 1}]}),
        ["device_status.sub_devices[0].ep_type: must be text; put it in quotes"],
    ),
    "white space in dev_sno": (
        smallest(gateway={"dev_sno": "A B"}),
        ["gateway.dev_sno: must be one word, without white space"],
    ),
    "duration": (
        smallest(source={"lookback": "1 week"}),
        ["source.lookback: is no duration, write a number of seconds or 500ms, 20s, 5m, 2h, 30d"],
    ),
    "no duration at all": (
        smallest(device_status={"interval": 0}),
        ["device_status.interval: must be longer than 0, for example 20s"],
    ),
    "size": (
        smallest(outbox={"max_size": "512MB"}),
        ["outbox.max_size: is no size, write a number of bytes or 800KiB, 512MiB, 2GiB"],
    ),
    "base beyond cap": (
        smallest(retry={"base": "6m"}),
        ["retry.base: must not be longer than cap"],
    ),
    "cap below base": (
        smallest(retry={"cap": "500ms"}),
        ["retry.base: must not be longer than cap"],
    ),
    "in flight": (
        endpoint(max_in_flight=0),
        ["history_event.endpoints[0].max_in_flight: must be at least 1"],
    ),
    "too many in flight": (
        endpoint(max_in_flight=65),
        ["history_event.endpoints[0].max_in_flight: must be at most 64"],
    ),
    "scheme of an endpoint": (
        endpoint("ftp://platform.example/"),
        ["history_event.endpoints[0].url: must be an http:// or https:// address with a host"],
    ),
    "endpoint without host": (
        endpoint("http:///HistoryEvent"),
        ["history_event.endpoints[0].url: must be an http:// or https:// address with a host"],
    ),
    "port of an endpoint": (
        endpoint("http://platform.example:99999/"),
        ["history_event.endpoints[0].url: must be an http:// or https:// address with a host"],
    ),
    "blank in a url": (
        endpoint("http://platform.example/a b"),
        ["history_event.endpoints[0].url: must be an http:// or https:// address with a host"],
    ),
    "line break in a url": (
        endpoint("http://platform.example/\nX: y"),
        ["history_event.endpoints[0].url: must be an http:// or https:// address with a host"],
    ),
    "credentials in a url": (
        endpoint("https://u:hunter2@platform.example/"),
        [
            "history_event.endpoints[0].url: must not hold credentials, put them into a file and "
            "name it under auth"
        ],
    ),
    "proxy": (
        endpoint(proxy="proxy:3128"),
        ["history_event.endpoints[0].proxy: must be an http:// or https:// address with a host"],
    ),
    "several at once": (
        endpoint(
            compression="brotli",
            auth={"bearer_file": "/a", "basic_file": "/b"},
            tls={"key_file": "/k"},
        )
        + "\nretry: {base: 10s, cap: 1s, reject_after: 0}\n",
        [
            "history_event.endpoints[0].auth: holds bearer_file and basic_file, keep one of them",
            "history_event.endpoints[0].compression: must be one of none, gzip",
            "history_event.endpoints[0].tls.key_file: needs cert_file beside it",
            "retry.base: must not be longer than cap",
            "retry.reject_after: must be at least 1",
        ],
    ),
    "both kinds of auth": (
        endpoint(auth={"bearer_file": "/a", "basic_file": "/b"}),
        ["history_event.endpoints[0].auth: holds bearer_file and basic_file, keep one of them"],
    ),
    "key without certificate": (
        endpoint(tls={"key_file": "/k", "cert_file": None}),
        ["history_event.endpoints[0].tls.key_file: needs cert_file beside it"],
    ),
    "the same endpoint twice": (
        smallest(device_status={"endpoints": [{"url": "http://192.168.1.19:9528/HistoryEvent"}]}),
        ["device_status.endpoints[0].name: another endpoint has this name, give each its own"],
    ),
    "name on two lines": (
        endpoint(name="a\nb"),
        [
            "history_event.endpoints[0].name: must be a name on one line, at most 200 characters, "
            "no space around it"
        ],
    ),
    "token over http to a public address": (
        smallest(
            device_status={"endpoints": [{"url": "http://8.8.8.8/", "auth": {"bearer_file": "/t"}}]}
        ),
        [
            "device_status.endpoints[0].url: would send a token or password unencrypted to a "
            "public address: use https://, or set allow_plaintext: true"
        ],
    ),
    "pictures over http to a public address": (
        endpoint("http://[2001:4860:4860::8888]/"),
        [
            "history_event.endpoints[0].url: would send pictures unencrypted to a public address: "
            "use https://, strip the pictures, or set allow_plaintext: true"
        ],
    ),
    "headers": (
        endpoint(
            headers={
                "Content-Type": "text/plain",
                "Authorization": "Bearer hunter2",
                "X-Line": "a\nb",
                "X-Name": "门口",
                "X Space": "hunter2",
                "X-Number": 5,
            }
        ),
        [
            "history_event.endpoints[0].headers.Authorization: holds credentials, put them into a "
            "file and name it under auth",
            "history_event.endpoints[0].headers.?: is no name of a header, write one such as ",
            "history_event.endpoints[0].headers.X-Line: must be printable ASCII on one line, no "
            "space around it",
            "history_event.endpoints[0].headers.X-Name: must be printable ASCII on one line, no "
            "space around it",
            "history_event.endpoints[0].headers.X-Number: must be text; put it in quotes",
            "history_event.endpoints[0].headers.Content-Type: is set by the uploader itself, "
            "remove it",
        ],
    ),
    "mariadb": (
        smallest(source={"url": "mariadb://u:hunter2@h/db"}),
        ["source.url: must begin with mysql:// in place of mariadb://"],
    ),
    "postgres": (
        smallest(source={"url": "postgres://u:hunter2@h/db"}),
        ["source.url: must begin with postgresql:// in place of postgres://"],
    ),
    "another database": (
        smallest(source={"url": "oracle://u:hunter2@h/db"}),
        [
            "source.url: must begin with one of sqlite://, mysql://, postgresql://, mongodb://",
        ],
    ),
    "database without file": (
        smallest(source={"url": "sqlite://event.db"}),
        [
            "source.url: must name a file: sqlite:///PATH, with four slashes if PATH is absolute",
        ],
    ),
    "database in memory": (
        smallest(source={"url": "sqlite:///:memory:"}),
        [
            "source.url: must name a file: sqlite:///PATH, with four slashes if PATH is absolute",
        ],
    ),
    "server without database": (
        smallest(source={"url": "mysql://u:hunter2@h/"}),
        ["source.url: must name a database: mysql://USER:PASSWORD@HOST/DATABASE"],
    ),
    "table and query": (
        smallest(source={"table": "event", "query": "SELECT 1"}),
        ["source.query: stands beside table, keep one of them"],
    ),
    "unknown field": (
        smallest(source={"columns": {"device_ip": "ip"}}),
        [
            "source.columns.device_ip: is an unknown key (did you mean ext_data.device_ip?), "
            "allowed: identity_id, "
        ],
    ),
    "field of a device mistyped": (
        smallest(source={"columns": {"ep_nam": "title"}}),
        ["source.columns.ep_nam: is an unknown key (did you mean ep_name?), allowed: "],
    ),
    "field of ext_data like one of a device": (
        smallest(source={"columns": {"ep_id": "camera"}}),
        ["source.columns.ep_id: is an unknown key (did you mean ext_data.ep_id?), allowed: "],
    ),
    "column of a device": (
        smallest(source={"columns": {"ep_ip": 7}}),
        ["source.columns.ep_ip: must be text; put it in quotes"],
    ),
    "mac": (
        smallest(gateway={"mac": "e0a509000e6d"}),
        ["gateway.mac: must be auto or a MAC address such as e0:a5:09:00:0e:6d"],
    ),
    "probe": (
        smallest(device_status={"sub_devices": [{"ep_ip": "10.0.0.1", "probe": "tcp:0"}]}),
        [
            "device_status.sub_devices[0].probe: must be tcp:PORT, seen:DURATION or none, for "
            "example tcp:80 or seen:10m"
        ],
    ),
    "duration of a probe": (
        smallest(device_status={"sub_devices": [{"ep_ip": "10.0.0.1", "probe": "seen:soon"}]}),
        ["device_status.sub_devices[0].probe: is no duration, "],
    ),
    "host name of a capture device": (
        smallest(device_status={"sub_devices": [{"ep_ip": "camera"}]}),
        ["device_status.sub_devices[0].ep_ip: must be a literal IP address such as 192.168.1.101"],
    ),
    "the same capture device twice": (
        smallest(device_status={"sub_devices": [{"ep_ip": "10.0.0.1"}, {"ep_ip": "10.0.0.1"}]}),
        [
            "device_status.sub_devices[1].ep_ip: stands in this list already, keep one of them",
        ],
    ),
    "lookback beyond the receipts": (
        smallest(source={"lookback": "16d"}),
        ["source.lookback: must be at most half of outbox.keep_delivered, or events"],
    ),
    "receipts shorter than the default lookback": (
        smallest(outbox={"keep_delivered": "119s"}),
        ["outbox.keep_delivered: must be at least twice source.lookback (1m), or events"],
    ),
    "listen": (
        smallest(metrics={"listen": ":9529"}),
        ["metrics.listen: must be HOST:PORT, for example 127.0.0.1:9529"],
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_told_in_words_of_our_own(tmp_path, mistake):
    """Each rule: exactly the places that break it are named, and no secret is repeated."""
    text, expected = MISTAKES[mistake]
    told = [re.sub(r"^[0-9]+: ", "", problem) for problem in problems(tmp_path, text)]
    assert len(told) == len(expected), told
    for problem, beginning in zip(sorted(told), sorted(expected)):
        assert problem.startswith(beginning)
        assert "hunter2" not in problem


GOOD = {
    "plaintext on purpose": endpoint("http://8.8.8.8/", allow_plaintext=True),
    "a public address without pictures": endpoint(
        "http://8.8.8.8/", pictures={"reg_pic": "strip", "spot_pic": "strip"}
    ),
    "a public address for reports, which hold no pictures": smallest(
        device_status={"endpoints": [{"url": "http://8.8.8.8/"}]}
    ),
    "token to a private address": endpoint("http://10.0.0.1/", auth={"bearer_file": "/t"}),
    "a public address over https": endpoint("https://8.8.8.8/", auth={"basic_file": "/t"}),
    "two names for one url": smallest(
        history_event={
            "endpoints": [{"url": "https://a/", "name": "a"}, {"url": "https://a/", "name": "b"}]
        }
    ),
    "proxy with credentials": endpoint(proxy="http://u:p@proxy:3128"),
    "certificate that holds its key": endpoint(tls={"cert_file": "/c"}),
    "extra column": smallest(source={"columns": {"ext_data.place.floor": "floor"}}),
    "lookback of half the receipts": smallest(
        source={"lookback": "15d"}, outbox={"keep_delivered": "30d"}
    ),
    "receipts twice the default lookback": smallest(outbox={"keep_delivered": "2m"}),
    "no lookback": smallest(source={"lookback": 0}, outbox={"keep_delivered": "1s"}),
    "mysql": smallest(source={"url": "mysql://u:p@127.0.0.1:3306/db?charset=utf8mb4"}),
    "mongodb": smallest(source={"url": "mongodb://127.0.0.1/sophon", "profile": "sophon-gate"}),
}


@pytest.mark.parametrize("good", GOOD)
def test_a_rule_hits_nothing_that_is_allowed(tmp_path, good):
    """The neighbours of the mistakes above load."""
    assert config.load(write(tmp_path, GOOD[good])).gateway.dev_sno == "TJGSDX0001"


def test_every_mistake_is_told_at_once_with_its_line(tmp_path):
    """One run shows the mistakes of every section and level, in the order of the file."""
    text = """\
gateway:
  dev_sno: X
  colour: red
source:
  url: sqlite:////e.db
  lookback: [1]
history_event:
  endpoints:
    - url: http://a/
      auth: {bearer_file: a, basic_file: b}
    - max_in_flight: none
retry: {base: 2h}
log:
  level: info
  level: debug
"""
    assert [problem.split(": ")[:2] for problem in problems(tmp_path, text)] == [
        ["3", "gateway.colour"],
        ["6", "source.lookback"],
        ["10", "history_event.endpoints[0].auth"],
        ["11", "history_event.endpoints[1].max_in_flight"],
        ["11", "history_event.endpoints[1].url"],
        ["12", "retry.base"],
        ["15", "log.level"],
    ]
