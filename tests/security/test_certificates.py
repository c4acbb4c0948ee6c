"""The table of certificate faults: nothing of an event goes out, and no event is lost for it."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any, Callable

import pytest

from se3_uploader import policy
from tests.http_server import Server
from tests.site import Site, Uploader, numbers, sums
from tests.test_sink_tls import BAD_SERVERS, CA, OTHER_CA, server_tls, write_pair


def asks_for_ours(version: ssl.TLSVersion) -> ssl.SSLContext:
    """A server that lets nobody in without a certificate of the site's authority."""
    context = server_tls()
    context.minimum_version = context.maximum_version = version
    context.verify_mode = ssl.CERT_REQUIRED
    CA.configure_trust(context)
    return context


FAULTS: Any = {name: (make, None) for name, (make, _) in BAD_SERVERS.items()}
for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
    for client in ("missing", "wrong"):
        FAULTS[f"client certificate {client}, {version.name}"] = (
            lambda version=version: asks_for_ours(version),
            client,
        )


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
@pytest.mark.parametrize(("make", "client"), FAULTS.values(), ids=FAULTS)
def test_a_bad_certificate_costs_time_and_no_event(
    tmp_path: Path, make: Callable[[], ssl.SSLContext], client: Any
) -> None:
    """The endpoint is paused and probed, not a byte goes out; once it is mended all arrives."""
    CA.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    tls = {"ca_file": str(tmp_path / "ca.pem")}
    if client == "wrong":
        pair = write_pair(tmp_path, OTHER_CA.issue_cert("box@example.org"))
        tls.update(cert_file=str(pair.cert_file), key_file=str(pair.key_file))
    site = Site(tmp_path)
    site.add(1, 2, 3)
    with Server(tls=make()) as server, Uploader(
        site.configure(server.url, endpoint={"tls": tls})
    ) as uploader:
        uploader.run(lambda: uploader.queue.health.failures >= 3)
        assert uploader.queue.health.state == policy.PAUSED
        server.wait_until(lambda: not server.open_connections)
        assert server.received == 0
        assert site.account() == sums(seen=3, pending=3)
        if client == "wrong":
            write_pair(tmp_path, CA.issue_cert("box@example.org"))
        else:
            server.tls = server_tls()
        uploader.run()
    assert sorted(numbers(server)) == [1, 2, 3]
    assert site.account() == sums(seen=3, delivered=3)
