"""One GET from an address that was chosen before: no name is looked up here, and no proxy asked."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Sequence
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import NamedTuple

from glmchat.tools.argv import Refused

from .url import Target

_TIMEOUT_S = 10.0
_MOST_BYTES = 5_000_000
_MOST_ADDRESSES = 4
_HEADERS = {
    "User-Agent": "glmchat",
    "Accept": "text/html, application/json, text/*;q=0.9, */*;q=0.1",
    "Accept-Encoding": "identity",
    "Connection": "close",
}


class Answer(NamedTuple):
    """What a server said."""

    status: int
    reason: str
    location: str
    """Of a redirect; bytes beyond ASCII stand as Latin-1."""
    kind: str
    """Its media type, in lower case; "" where it has none."""
    charset: str
    encoding: str
    body: bytes
    size: int
    """Bytes of the body as the server has it, which may be more than was read."""


def get(to: Target, addresses: Sequence[str]) -> Answer:
    """Ask the first of `addresses` that takes a connection."""
    try:
        with _connected(to, addresses) as connection:
            return _answer(to, connection)
    except ssl.SSLCertVerificationError as e:
        raise Refused(f"{to.host} has no valid certificate: {e.verify_message}") from None
    except TimeoutError:
        raise Refused(f"{to.host} gave no answer within {_TIMEOUT_S:g} seconds; try again later") from None
    except HTTPException as e:
        raise Refused(f"{to.host} gave no valid HTTP answer ({type(e).__name__})") from None
    except OSError as e:
        raise Refused(f"{to.host} port {to.port} cannot be reached: {e.strerror or e}") from None


def _connected(to: Target, addresses: Sequence[str]) -> socket.socket:
    fault = OSError("it has no address")
    for address in addresses[:_MOST_ADDRESSES]:
        plain = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
        try:
            plain.settimeout(_TIMEOUT_S)
            plain.connect((address, to.port))
        except OSError as e:
            plain.close()
            fault = e
            continue
        if to.scheme == "http":
            return plain
        return ssl.create_default_context().wrap_socket(plain, server_hostname=to.host.rstrip("."))
    raise fault


def _answer(to: Target, connected: socket.socket) -> Answer:
    make = HTTPSConnection if to.scheme == "https" else HTTPConnection
    connection = make(to.host, to.port)
    connection.auto_open = 0  # it has its connection, and is to make no other
    connection.sock = connected
    connection.request("GET", to.path, headers=_HEADERS)
    with connection.getresponse() as response:
        declared = response.length or 0
        body = b"" if 300 <= response.status < 400 else response.read(_MOST_BYTES)
        return Answer(
            status=response.status,
            reason=response.reason,
            location=response.headers.get("Location") or "",
            kind=response.headers.get_content_type() if response.headers.get("Content-Type") else "",
            charset=response.headers.get_content_charset() or "",
            encoding=(response.headers.get("Content-Encoding") or "identity").lower(),
            body=body,
            size=max(len(body), declared),
        )
