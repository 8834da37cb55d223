"""Which URLs http_get takes, and which addresses it connects to. Neither asks the network."""

from __future__ import annotations

import re
from typing import Any, NamedTuple
from urllib.parse import quote, urlsplit

from glmchat.tools.argv import Refused

from .text import clean, shown

SAFE = "!#$%&'()*+,/:;=?@[]~"
"""What a URL holds as it is; all else is percent-encoded."""

_LONGEST = 8000
_PORTS = {"http": 80, "https": 443}
_HOST = re.compile(r"[A-Za-z0-9._:-]+")

# The IANA registries of special-purpose addresses, kept here since what `ipaddress` calls global
# differs from one version of Python to the next.
_SPECIAL_4 = (
    "0.0.0.0/8",  # this network
    "10.0.0.0/8",  # private
    "100.64.0.0/10",  # shared by the customers of a provider
    "127.0.0.0/8",  # this machine
    "169.254.0.0/16",  # this link, and what clouds tell their machines
    "172.16.0.0/12",  # private
    "192.0.0.0/24",  # protocols
    "192.0.2.0/24",  # documentation
    "192.88.99.0/24",  # 6to4 relays
    "192.168.0.0/16",  # private
    "198.18.0.0/15",  # benchmarks
    "198.51.100.0/24",  # documentation
    "203.0.113.0/24",  # documentation
    "224.0.0.0/4",  # multicast
    "240.0.0.0/4",  # reserved, and broadcast
)
_GLOBAL_6 = "2000::/3"
_SPECIAL_6 = (
    "2001::/23",  # protocols, among them Teredo, which holds an IPv4 address
    "2001:db8::/32",  # documentation
    "2002::/16",  # 6to4, which holds an IPv4 address
    "3fff::/20",  # documentation
)
_MAPPED, _NAT64 = "::ffff:0:0/96", "64:ff9b::/96"
"""Another spelling of an IPv4 address, and the way to one from a network without."""


class Target(NamedTuple):
    """Where a request goes."""

    url: str
    scheme: str
    host: str
    port: int
    path: str
    """With the query."""


def target(url: Any) -> Target:
    """The parts of a URL that may be asked for, or Refused."""
    text = clean("url", url).strip()
    told = shown(text)
    if len(text) > _LONGEST:
        raise Refused(f"url is {len(text):,} characters long; {_LONGEST:,} are taken")
    if "\\" in text or any(ord(c) < 32 or ord(c) == 127 for c in text):
        raise Refused(f"{told} holds a backslash or control character; percent-encode it")
    try:
        parts = urlsplit(text)
        port = parts.port
        host = (parts.hostname or "").encode("ascii" if text.isascii() else "idna").decode()
    except ValueError:  # UnicodeError is one
        raise Refused(f"{told} is no valid URL; check its host and port") from None
    if parts.scheme not in _PORTS:
        raise Refused(f"{told} is no web address; only http:// and https:// are taken")
    if "@" in parts.netloc:
        raise Refused("url holds a user name or password before the @; leave them out")
    if not _HOST.fullmatch(host) or port == 0:
        raise Refused(f"{told} names no valid host; check what comes after {parts.scheme}://")
    path = quote(parts.path or "/", SAFE) + (f"?{quote(parts.query, SAFE)}" if parts.query else "")
    return Target(text, parts.scheme, host, port or _PORTS[parts.scheme], path)


def public(address: str) -> bool:
    """Whether an IP address is one of the public Internet, also by the IPv4 address inside of it."""
    from ipaddress import IPv4Address, ip_address, ip_network

    try:
        ip = ip_address(address)
    except ValueError:
        return False
    if isinstance(ip, IPv4Address):
        return not any(ip in ip_network(special) for special in _SPECIAL_4)
    if any(ip in ip_network(spelling) for spelling in (_MAPPED, _NAT64)):
        return public(str(IPv4Address(int(ip) & 0xFFFF_FFFF)))
    return ip in ip_network(_GLOBAL_6) and not any(ip in ip_network(special) for special in _SPECIAL_6)
