"""From Settings to a Chat: reads the files that settings name, and starts to load the model."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import fields
from fnmatch import filter as matching
from pathlib import Path

from ..chat import Chat
from ..engine.base import Engine, GenerationOptions
from ..engine.memory import LoadOptions
from ..errors import EXIT_OK, UsageError
from ..events import LoadProgress, ToolServerFailed
from ..messages import Message
from ..settings import NONE, Settings, default_config_path, nearest, state_folder
from ..tools.approve import Approvals
from ..tools.declare import Declarations, Server, Tool
from ..tools.reading import clashes, read_declarations, read_text
from ..tools.toolbox import Toolbox
from ..tools.trust import Trust
from .sanitize import sanitize
from .say import say
from .wording import server_text

DEMO = "demo"
"""What answers when no model was ever chosen."""

WITHOUT_IT = "(--tools none starts without it.)"
"""What to do about declarations that nobody named."""


def open_chat(
    settings: Settings, on_progress: Callable[[LoadProgress], None] | None = None, *, apart: bool = False
) -> Chat:
    """A Chat whose model loads in the background: `chat.engine.info` waits for it, or raises its fault.

    `on_progress` is called in a thread of the engine's. With `apart` the model runs in a process of its own.
    """
    if settings.model is None:
        say(
            "this is the tiny bundled demo; choose a real model with --model zai-org/GLM-4.5-Air "
            f"or in {default_config_path()}."
        )
    return make_chat(
        settings, lambda: open_engine(settings, settings.model or DEMO, on_progress, apart=apart)
    )


def make_chat(settings: Settings, make_engine: Callable[[], Engine]) -> Chat:
    """A Chat as the settings say. The files that they name are read before the engine is made."""
    system = read_system(settings.system)
    allowed = [name.strip() for name in (settings.allow or "").split(",") if name.strip()]

    def load() -> Declarations:
        declared = declarations(settings)
        _check_allowed(allowed, declared)
        return declared

    toolbox = Toolbox(load)
    return Chat(
        make_engine(),
        system=system,
        tools=toolbox,
        options=generation_options(settings),
        drop_oldest=settings.overflow == "drop-oldest",
        approvals=Approvals(
            allowed=frozenset(allowed),
            everything=settings.yes,
            remembered=state_folder() / "allowed-tools.json",
        ),
        max_tool_rounds=settings.max_tool_rounds,
    )


def open_engine(
    settings: Settings,
    model: str,
    on_progress: Callable[[LoadProgress], None] | None = None,
    *,
    apart: bool = False,
) -> Engine:
    """An engine that loads `model` in the background, placed as the settings say.

    With several ranks it is always apart: if one fails, the process of another can only end.
    """
    options = load_options(settings)
    template = settings.chat_template
    if apart or options.parallel != "off":
        from ..engine.worker import WorkerEngine

        return WorkerEngine(model, options, chat_template=template, on_progress=on_progress)
    from ..engine.local import LocalEngine

    return LocalEngine(model, options, chat_template=template, on_progress=on_progress)


def load_options(settings: Settings) -> LoadOptions:
    return LoadOptions(**{field.name: getattr(settings, field.name) for field in fields(LoadOptions)})


def print_prompt(settings: Settings, prompt: str) -> int:
    """Write the exact text that the model would see; reads its tokenizer and template, no weights."""
    from ..glm.checkpoints import choose_template, resolve
    from ..glm.encode import PromptEncoder

    system = read_system(settings.system)
    toolbox = Toolbox(lambda: declarations(settings))
    checkpoint = resolve(
        settings.model or DEMO,
        revision=settings.revision,
        token=settings.token,
        offline=settings.offline,
    )
    encoder = PromptEncoder(checkpoint.tokenizer, choose_template(checkpoint, settings.chat_template))
    messages = [Message("system", system)] if system is not None else []
    messages.append(Message("user", prompt))
    with closing(toolbox):
        for event in toolbox.wait(lambda: False):
            if isinstance(event, ToolServerFailed):
                say(server_text(event))
        told = [dict(tool.declaration) for tool in toolbox.active]
    text = encoder.encode(messages, told, enable_thinking=settings.think).text
    sys.stdout.write(sanitize(text) + "\n" if sys.stdout.isatty() else text)
    return EXIT_OK


def _check_allowed(allowed: Sequence[str], declared: Declarations) -> None:
    """Raises UsageError for a name that no tool has; those of servers are only known when they run."""
    names = [tool.name for tool in declared.tools]
    prefixes = tuple(f"{server.name}." for server in declared.servers)
    for name in allowed:
        if not matching(names, name) and not name.startswith(prefixes):
            hint = nearest(name, names) or f"; declared are: {', '.join(names) or 'none'}."
            raise UsageError(f"--allow {name}: there is no such tool{hint}")


def project_file() -> Path:
    """Where a project declares its tools: in the folder that glmchat is started in."""
    return Path(".glmchat") / "tools.json"


def declarations(settings: Settings) -> Declarations:
    """The tools of the named files, of the project if it is trusted, and of the person's own config folder.

    Of a name that stands in several, the first counts. Raises UsageError.
    """
    named = {path: read_declarations(path) for path in settings.tools if path != NONE}
    if clash := clashes(named):
        raise UsageError(clash)
    levels = list(named.values())
    if NONE not in settings.tools:
        own = default_config_path().parent / "tools.json"
        try:
            if text := trusted_text():
                levels.append(read_declarations(str(project_file()), text))
            if own.is_file():
                levels.append(read_declarations(str(own)))
        except UsageError as e:  # which nobody named
            raise UsageError(f"{e} {WITHOUT_IT}") from None
    tools: dict[str, Tool] = {}
    servers: dict[str, Server] = {}
    for level in levels:
        tools = {**{tool.name: tool for tool in level.tools}, **tools}
        servers = {**{server.name: server for server in level.servers}, **servers}
    return Declarations(tuple(tools.values()), tuple(servers.values()))


def trusted_text() -> str:
    """What the project declares, if it was trusted as it stands; else ""."""
    path = project_file()
    if not path.is_file():
        return ""
    try:
        text = read_text(str(path))
    except UsageError:  # so it is not what was trusted
        return ""
    return text if trust().has(path, text) else ""


def trust() -> Trust:
    return Trust(state_folder() / "trusted-files.json")


def generation_options(settings: Settings) -> GenerationOptions:
    return GenerationOptions(
        enable_thinking=settings.think,
        temperature=settings.temperature,
        top_p=settings.top_p,
        top_k=settings.top_k,
        max_tokens=settings.max_tokens,
        seed=settings.seed,
        greedy=settings.greedy,
    )


def read_system(value: str | None) -> str | None:
    """The system message: the text itself, or with `@FILE` what the file holds."""
    if value is None or not value.startswith("@"):
        return value
    try:
        return read_text(value[1:]).rstrip("\n")
    except UsageError as e:
        raise UsageError(f"--system: {e}") from None
