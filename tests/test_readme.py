"""The README says nothing that the program does not do: options, paths, commands and examples are checked."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from glmchat import errors
from glmchat.cli import build_bench_parser, build_parser
from glmchat.terminal.commands import COMMANDS, KEYS
from glmchat.tools.reading import check_declarations

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def shell_lines() -> list[str]:
    return [line for block in blocks("sh") for line in block.splitlines()]


def glmchat_commands() -> list[list[str]]:
    """The arguments of every `glmchat …` in the README's shell examples, pipes and ARGS included."""
    commands = []
    for line in shell_lines():
        words = shlex.split(line, comments=True)
        if words[:2] == ["make", "chat"]:
            words += next((["glmchat", *shlex.split(w[5:])] for w in words if w.startswith("ARGS=")), [])
        while "glmchat" in words:
            words = words[words.index("glmchat") + 1 :]
            stop = next((i for i, word in enumerate(words) if word in ("|", ">")), len(words))
            commands.append(words[:stop])
    return commands


def test_options_are_those_of_help() -> None:
    (shown,) = blocks("text")
    assert shown == build_parser().format_help(), "put the output of `glmchat --help` into README.md"


def test_commands_and_keys_are_those_of_the_chat() -> None:
    rows = re.findall(r"^\| (.+) \| (.+) \|$", README, re.MULTILINE)
    commands = [(f"`{c.name} {c.arguments}".strip().replace("|", r"\|") + "`", c.help) for c in COMMANDS]
    assert [row for row in rows if row[0].startswith("`/")] == commands
    assert set(KEYS) <= set(rows)


def test_examples_are_found() -> None:
    assert len(glmchat_commands()) > 10


@pytest.mark.parametrize("words", glmchat_commands(), ids=shlex.join)
def test_examples_are_understood(words: list[str]) -> None:
    if words[:1] == ["tools"]:
        assert words[1] in ("check", "init")
        return
    parser = build_bench_parser() if words[:1] == ["bench"] else build_parser()
    _, rest = parser.parse_known_args(words[words[:1] == ["bench"] :])
    assert not rest


def test_the_declaration_is_sound(tmp_path: Path) -> None:
    (text,) = blocks("json")
    (tmp_path / "tools.json").write_text(text)
    declared, faults = check_declarations(str(tmp_path / "tools.json"))
    assert (len(declared.tools), len(declared.servers), faults) == (2, 2, ())


def test_make_targets_and_modules_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = {word for line in shell_lines() for word in re.findall(r"\bmake (\w+)", line)}
    assert {"chat", "test", "lint", "types"} <= targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)
    modules = re.findall(r"python -m (\w+)\.?(\w*)", "\n".join(shell_lines()))
    assert ("training", "train") in modules
    for package, module in modules:
        assert (ROOT / package / f"{module or '__main__'}.py").is_file()


def test_links_and_paths_exist() -> None:
    links = re.findall(r"\]\((?!https?:|#)([^)]+)\)", README)
    folder_map = re.findall(r"^\| (`.+?) \|", README.partition("## How it works")[2], re.MULTILINE)
    paths = [path for cell in folder_map for path in re.findall(r"`([^`]+)`", cell)]
    assert len(links) >= 3
    assert len(paths) >= 10
    for path in links + paths:
        assert (ROOT / path).exists(), path


def test_every_folder_of_the_package_is_on_the_map() -> None:
    folders = [p for p in (ROOT / "glmchat").iterdir() if p.is_dir() and p.name != "__pycache__"]
    assert all(f"`glmchat/{folder.name}/`" in README for folder in folders)


def test_exit_codes_are_those_of_the_program() -> None:
    listed = {int(code) for code in re.findall(r"^\| (\d+) \|", README, re.MULTILINE)}
    assert {value for name, value in vars(errors).items() if name.startswith("EXIT_")} <= listed


@pytest.mark.parametrize("code", blocks("python"))
def test_python_examples_run(code: str) -> None:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_config_example_is_understood(tmp_path: Path) -> None:
    from glmchat.settings import load_settings

    (example,) = blocks("toml")
    (tmp_path / "config.toml").write_text(example)
    assert load_settings({}, {}, str(tmp_path / "config.toml")).max_tokens == 2000
