"""Which capture devices are online: all probes at once, within one time limit."""

from __future__ import annotations

import errno
import selectors
import socket
import time
from contextlib import ExitStack
from typing import Dict, List, Mapping, NamedTuple, Optional, Sequence

from ..config import SubDevice
from ..units import duration


class Statuses(NamedTuple):
    """What the probes found."""

    online: Dict[str, bool]
    """ep_ip -> is it online; one entry for each device asked for."""
    problems: List[str]


def statuses(
    devices: Sequence[SubDevice], seen: Mapping[str, int], now_ms: int, timeout: float
) -> Statuses:
    """Find out which devices are online, each by the probe configured for it.

    seen is device_ip -> timestamp of the newest event (epoch ms), now_ms the wall clock. Waits at
    most timeout seconds however many devices are dead. A tcp probe of a host name counts as offline
    and is a problem: its DNS lookup could outlast every limit.
    """
    online = {}
    ports = {}
    for device in devices:
        kind, _, argument = device.probe.partition(":")
        if kind == "tcp":
            ports[device.ep_ip] = int(argument)
        elif kind == "seen":
            online[device.ep_ip] = seen_within(
                duration(argument), seen.get(device.ep_ip), now_ms=now_ms
            )
        else:
            online[device.ep_ip] = True
    answers = probe(ports, timeout)
    return Statuses(
        online={**online, **{ep_ip: answers.get(ep_ip, False) for ep_ip in ports}},
        problems=[
            f"device_status.sub_devices: {ep_ip} is not an IP address and cannot be probed by tcp, "
            "so it is reported offline; write its address"
            for ep_ip in ports
            if ep_ip not in answers
        ],
    )


def seen_within(seconds: float, newest_ms: Optional[int], *, now_ms: int) -> bool:
    """Whether the newest event (epoch ms, None: no event) is at most this old.

    Equally far ahead is fine too, since a camera's clock may be a little fast. Further ahead it is
    our own clock that is wrong, and the event proves nothing about today.
    """
    return newest_ms is not None and abs(now_ms - newest_ms) <= seconds * 1000


def probe(targets: Mapping[str, int], timeout: float) -> Dict[str, bool]:
    """Try a TCP connection to every target (literal address -> port): address -> was it accepted.

    All at once on one selector, so the whole takes at most timeout seconds. An address that is no
    literal is left out of the answer: nothing here waits for DNS. Raises OSError where this process
    cannot open sockets, which says nothing about the devices.
    """
    answers: Dict[str, bool] = {}
    deadline = time.monotonic() + timeout
    with ExitStack() as stack:
        selector = stack.enter_context(selectors.DefaultSelector())
        for address, port in targets.items():
            try:
                family, kind, protocol, _, place = socket.getaddrinfo(
                    address, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST
                )[0]
            except (OSError, ValueError):
                continue
            connection = stack.enter_context(socket.socket(family, kind, protocol))
            connection.setblocking(False)
            result = connection.connect_ex(place)
            answers[address] = result == 0
            if result == errno.EINPROGRESS:
                selector.register(connection, selectors.EVENT_WRITE, (address, connection))
        while selector.get_map() and (left := deadline - time.monotonic()) > 0:
            for key, _ in selector.select(left):
                address, connection = key.data
                selector.unregister(connection)
                error = connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                answers[address] = error == 0
    return answers
