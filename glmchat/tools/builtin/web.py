"""http_get: a page or a file of text from the public Internet.

A name is looked up once, all its addresses are checked, and the connection goes to one of these, so that a
second answer of the name server changes nothing. A redirect is a new URL, checked in the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias
from urllib.parse import quote, urljoin

from glmchat.tools.argv import Refused

from . import wire
from .text import shown
from .url import SAFE, Target, public, target

Resolve: TypeAlias = Callable[[str, int], Sequence[str]]

_MOST_REDIRECTS = 5
_REDIRECTS = {301, 302, 303, 307, 308}
_FAULT_BODY = 2000
"""Characters of what a server says beside a status such as 404."""


class Answered(Refused):
    """The server said no; `body` is what it said further."""

    def __init__(self, message: str, body: str) -> None:
        super().__init__(message)
        self.body = body


def http_get(url: str, *, private: bool) -> str:
    """The text at a URL. With `private`, this machine and its private network can be reached."""
    return fetch(url, addresses_of, (lambda address: True) if private else public)


def fetch(url: str, resolve: Resolve, allowed: Callable[[str], bool]) -> str:
    """`http_get`, with what it asks of the system."""
    to = target(url)
    for _ in range(_MOST_REDIRECTS + 1):
        answer = wire.get(to, _checked(to, resolve, allowed))
        if answer.status not in _REDIRECTS or not answer.location:
            return _result(to, answer)
        to = _redirected(to, answer.location)
    raise Refused(
        f"{shown(url)} was redirected more than {_MOST_REDIRECTS} times; the last was to {shown(to.url)}"
    )


def addresses_of(host: str, port: int) -> list[str]:
    """What the system finds for a name, however it is spelled."""
    import socket

    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as e:
        reason = e.strerror if isinstance(e, OSError) and e.strerror else "no valid name"
        raise Refused(f"{host} cannot be found: {reason}") from None
    return [str(address[0]) for *_, address in found]


def _checked(to: Target, resolve: Resolve, allowed: Callable[[str], bool]) -> Sequence[str]:
    addresses = resolve(to.host, to.port)
    for address in addresses:
        if not allowed(address):
            raise Refused(
                f"{shown(to.host)} is at {address}, which is no public address; "
                'only where http_get is declared with "private": true may it go there'
            )
    return addresses


def _redirected(to: Target, location: str) -> Target:
    try:
        joined = urljoin(to.url, quote(location, SAFE, encoding="latin-1"))
    except ValueError:
        raise Refused(f"{to.host} redirects to {shown(location)}, which is no valid URL") from None
    following = target(joined)
    if to.scheme == "https" and following.scheme == "http":
        raise Refused(f"{to.host} redirects from https to {shown(joined)}, which is not encrypted")
    return following


def _result(to: Target, answer: wire.Answer) -> str:
    good = 200 <= answer.status < 300
    text = _text(to, answer, strict=good)
    if not good:
        said = f"{shown(to.url)} answered {answer.status} {shown(answer.reason)}".rstrip()
        raise Answered(said, text[:_FAULT_BODY])
    if answer.size > len(answer.body):
        text += f"\n[This is the beginning: {len(answer.body):,} of {answer.size:,} bytes.]"
    return text or "[The answer is empty.]"


def _text(to: Target, answer: wire.Answer, *, strict: bool) -> str:
    """The body as text; where it is none, nothing, or Refused when `strict`."""
    if not answer.body:
        return ""
    if answer.encoding != "identity" or not _is_text(answer):
        if not strict:
            return ""
        kind = answer.kind or "data of no declared type"
        packed = "" if answer.encoding == "identity" else f", compressed ({shown(answer.encoding)})"
        raise Refused(
            f"{shown(to.url)} is {shown(kind)}{packed}, {answer.size:,} bytes; only text can be read"
        )
    if answer.kind in ("text/html", "application/xhtml+xml"):
        from . import page

        return page.text(_decoded(answer.body, answer.charset or page.charset(answer.body)), to.url)
    return _decoded(answer.body, answer.charset)


def _is_text(answer: wire.Answer) -> bool:
    if not answer.kind:
        return b"\0" not in answer.body
    main, _, sub = answer.kind.partition("/")
    last = sub.rpartition("+")[2].removeprefix("x-")
    return main == "text" or (
        main == "application" and last in {"json", "xml", "javascript", "yaml", "toml", "ndjson"}
    )


def _decoded(body: bytes, charset: str) -> str:
    try:
        return body.decode(charset or "utf-8-sig", errors="replace")
    except (LookupError, UnicodeError):  # a charset that is unknown, or none for text
        return body.decode("utf-8-sig", errors="replace")
