"""scripts/venv.sh, which `make` runs first: what is missing gets one line that names the remedy."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
READ = (
    "scripts/venv.sh",
    "pyproject.toml",
    "constraints.txt",
    "hatch_build.py",
    "glmchat/engine/kernels/attention.c",
)
TOOLS = ("sh", "dirname", "cat", "cksum", "sed", "grep", "tee", "rm", "cut", "head", "tail")


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A folder with what set-up reads, and a `bin` with the usual tools but no Python."""
    folder = tmp_path / "clone"
    for name in READ:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    (folder / "bin").mkdir()
    for tool in TOOLS:
        (folder / "bin" / tool).symlink_to(shutil.which(tool) or pytest.skip(f"{tool} is not installed"))
    return folder


def add_python(clone: Path, name: str, module: str, source: str) -> None:
    """This Python as `bin/name`, with a module of its standard library replaced by `source`."""
    folder = clone / f"lib-{name}"
    folder.mkdir()
    (folder / f"{module}.py").write_text(source)
    program = clone / "bin" / name
    program.write_text(f'#!/bin/sh\nPYTHONPATH="{folder}" exec "{sys.executable}" "$@"\n')
    program.chmod(0o755)


def set_up(clone: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [clone / "scripts" / "venv.sh", "chat"],
        env={"PATH": str(clone / "bin"), "HOME": str(clone), **environment},
        capture_output=True,
        text=True,
        check=False,
    )


OLD = ("sitecustomize", "import sys; sys.version_info = (3, 8, 18, 'final', 0)")
NO_VENV = ("ensurepip", "raise ImportError")
OFFLINE = {"PIP_CONFIG_FILE": os.devnull, "PIP_INDEX_URL": "http://127.0.0.1:9/"}


@pytest.mark.parametrize(
    ("pythons", "chosen", "said"),
    [
        ({}, "", "python3 does not run; install Python 3.10 or newer"),
        ({}, "/nowhere/python", "/nowhere/python does not run"),
        ({"python3": OLD}, "", "python3 is Python 3.8.18; install 3.10 or newer"),
        ({"python3": NO_VENV}, "", "python3 lacks venv; add it (Debian, Ubuntu: apt install python3."),
        ({"python3.11": OLD, "python": NO_VENV}, "python3.11", "python3.11 is Python 3.8.18"),
    ],
)
def test_no_python_that_will_do(
    clone: Path, pythons: dict[str, tuple[str, str]], chosen: str, said: str
) -> None:
    for name, (module, source) in pythons.items():
        add_python(clone, name, module, source)
    done = set_up(clone, **({"PYTHON": chosen} if chosen else {}))
    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"glmchat set-up: {said}")
    assert "make PYTHON=" in line
    assert not (clone / ".venv").exists()


def test_no_network_is_said_in_one_line_and_tried_again(clone: Path) -> None:
    add_python(clone, "python3", *OLD)
    (clone / "bin" / "python3.11").symlink_to(sys.executable)
    for retries in "01":  # pip words it differently
        done = set_up(clone, **OFFLINE, PIP_RETRIES=retries)
        assert done.returncode == 1
        assert done.stdout == ""
        first, last = done.stderr.splitlines()
        assert first.startswith("Installing glmchat into .venv")
        assert "cannot reach the package index; check the network" in last
    assert not list((clone / ".venv").glob(".ready-*"))


def test_what_a_killed_installation_left_is_thrown_away(clone: Path) -> None:
    (clone / "bin" / "python3").symlink_to(sys.executable)
    offline = {**OFFLINE, "PIP_RETRIES": "0"}
    set_up(clone, **offline)
    half = clone / ".venv" / "half-installed"
    half.touch()
    set_up(clone, **offline)
    assert half.exists()  # pip ended by itself: the venv is sound
    (clone / ".venv" / ".unfinished").touch()
    set_up(clone, **offline)
    assert not half.exists()


PYTHON = """#!/bin/sh
case "$*" in
    "-m venv "*) mkdir -p "$3/bin"; cp "$0" "$3/bin/python" ;;
    "-m pip "*) echo once >>installed ;;
    *print*) echo 3.11.7 ;;
esac
"""


def test_a_compiler_that_comes_later_gets_to_compile_the_kernels(clone: Path) -> None:
    for tool in ("mkdir", "cp"):
        (clone / "bin" / tool).symlink_to(shutil.which(tool) or pytest.skip(f"{tool} is not installed"))
    for name, program in (("python3", PYTHON), ("", ""), ("gcc", "#!/bin/sh\n"), ("", "")):
        if name:
            (clone / "bin" / name).write_text(program)
            (clone / "bin" / name).chmod(0o755)
        assert set_up(clone).returncode == 0
    assert (clone / "installed").read_text().split() == ["once", "once"]
