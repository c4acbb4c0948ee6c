"""PURE: what must not go unencrypted, and the addresses to which it may all the same."""

from __future__ import annotations

import ipaddress
from typing import Optional
from urllib.parse import urlsplit

from .. import config

TRUSTED_NETWORKS = tuple(
    ipaddress.ip_network(network)
    for network in (
        "127.0.0.0/8",
        "10.0.0.0/8",
        "172.16.0.0/12",
        "192.168.0.0/16",
        "169.254.0.0/16",
        "::1/128",
        "fc00::/7",
        "fe80::/10",
    )
)
"""Loopback, private and link-local, spelled out: Python's is_private changes with its version."""


class PlaintextRefused(Exception):
    """Something that must not be read by others would go unencrypted to a public address."""


def is_trusted(address: str) -> bool:
    """Tell whether an address is loopback, private or link-local."""
    parsed = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped:
        parsed = parsed.ipv4_mapped
    return any(parsed in network for network in TRUSTED_NETWORKS)


def refusal(endpoint: config.Endpoint, authorization: Optional[str]) -> str:
    """Name what would be readable on the way, if that is not allowed; "" where nothing would be."""
    if endpoint.allow_plaintext:
        return ""
    url, proxy = urlsplit(endpoint.url), urlsplit(endpoint.proxy or "")
    if proxy.scheme == "http" and "@" in proxy.netloc:
        return "the proxy's password"
    if url.scheme == "https":
        return ""
    headers = {name.lower() for name in endpoint.headers}
    if authorization or "authorization" in headers or "@" in url.netloc:
        return "a token or password"
    pictures = (endpoint.pictures.reg_pic, endpoint.pictures.spot_pic)
    if endpoint.kind == "history_event" and pictures != ("strip", "strip"):
        return "face pictures"
    return ""
