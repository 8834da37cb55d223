"""current_time: the date, the time and the day, here or in a named zone."""

from __future__ import annotations

from datetime import datetime

from glmchat.tools.argv import Refused

from .text import clean, shown


def current_time(timezone: str = "") -> str:
    """`2026-11-25 14:03 Wednesday, UTC+01:00 (Europe/Oslo)`"""
    if not timezone:
        now = datetime.now().astimezone()
        return told(now, now.tzname() or "local")
    from zoneinfo import ZoneInfo

    clean("timezone", timezone)
    try:
        zone = ZoneInfo(timezone)
    except (KeyError, ValueError, OSError):  # OSError: a folder of the zone data, such as Europe
        raise Refused(
            f"there is no time zone {shown(timezone)}; give an IANA name such as Europe/Oslo"
        ) from None
    return told(datetime.now(zone), timezone)


def told(moment: datetime, zone: str) -> str:
    """The moment as text."""
    offset = moment.strftime("%z")
    return f"{moment:%Y-%m-%d %H:%M %A}, UTC{offset[:3]}:{offset[3:5]} ({zone})"
