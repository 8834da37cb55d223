"""Asks whether the tools of a project are trusted, before anything of theirs is read.

Who clones a project has not looked at its tools: they could run anything. So its file is shown whole, and
used only after a word. A file that was changed is asked about again.
"""

from __future__ import annotations

import sys

from ..errors import UsageError
from ..settings import NONE, Settings
from ..tools.reading import read_text
from . import say as saying
from .sanitize import sanitize
from .start import WITHOUT_IT, project_file, trust, trusted_text


def ask(settings: Settings) -> None:
    """Show the project's declarations and ask, where there are some that are not trusted yet."""
    path = project_file()
    if NONE in settings.tools or not path.is_file() or trusted_text():
        return
    try:
        text = read_text(str(path))
    except UsageError as e:
        raise UsageError(f"{e} {WITHOUT_IT}") from None
    shown = f"This folder declares tools, in {path}:\n\n{text}"
    question = "Trust them? (yes, or anything else to leave them out) "
    with saying.beside():  # what was typed before is no answer to it
        print(f"{sanitize(shown).rstrip()}\n", file=sys.stderr)
        try:
            answer = input(question)
        except EOFError:
            answer = ""
            print()
    if answer.strip().lower() in ("y", "yes"):
        try:
            trust().add(path, text)
        except OSError as e:
            raise UsageError(
                f"It cannot be remembered that {path} is trusted: {e.strerror or e}; "
                "mend that, or leave its tools out with --tools none."
            ) from None


def warn(settings: Settings) -> None:
    """Say in a pipe, where nobody can be asked, that they are left out."""
    if NONE not in settings.tools and project_file().is_file() and not trusted_text():
        saying.say(
            f"the tools in {project_file()} are left out: start glmchat here in a terminal to look "
            "at them and trust them, or say --tools none."
        )
