"""How a person's edited arguments are read."""

from __future__ import annotations

import pytest

from glmchat.terminal.approval import read_arguments


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "Expecting value"),
        ("[1]", "stand in braces"),
        ("[" * 100_000, "nested too deeply"),
        ('{"a": %s}' % ("9" * 5000), "digits"),
    ],
)
def test_what_is_no_object_is_told(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        read_arguments(text)
