"""The built-in tools as they are run, in a process of their own, and what a hostile model could send them."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import socket
import socketserver
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import glmchat.tools.builtin
from glmchat.tools.argv import Refused
from glmchat.tools.builtin import arithmetic, check, clock, declarations, files, page, search, web, wire
from glmchat.tools.builtin.command import words
from glmchat.tools.builtin.place import confined, placed
from glmchat.tools.builtin.url import public, target

MAIN = Path(glmchat.tools.builtin.__file__).with_name("__main__.py")
MEGABYTE = "x" * 1_000_000


class Result(NamedTuple):
    code: int
    out: str
    err: str


def call(name: str, root: Path, /, main: Path = MAIN, config: Any = {}, **arguments: Any) -> Result:  # noqa: B006
    """Run the tool as glmchat does."""
    settings = {"roots": [str(root)], "private": False, "max_output": 65536, **config}
    done = subprocess.run(
        [sys.executable, "-I", str(main), name, json.dumps(settings)],
        input=json.dumps(arguments).encode(),
        capture_output=True,
        cwd="/",
        env={"PATH": os.environ["PATH"], "LC_ALL": "C"},
        timeout=60,
    )
    return Result(done.returncode, done.stdout.decode(), done.stderr.decode())


def good(name: str, root: Path, /, **arguments: Any) -> str:
    result = call(name, root, **arguments)
    assert (result.code, result.err) == (0, "")
    return result.out


def refused(name: str, root: Path, /, **arguments: Any) -> str:
    """The one line that says why."""
    result = call(name, root, **arguments)
    assert (result.code, result.out) == (1, ""), result
    assert result.err.endswith("\n")
    assert len(result.err.splitlines()) == 1, result.err
    assert len(result.err) < 1000
    assert "Traceback" not in result.err
    return result.err


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root folder with ways out of it, and beside it what must stay unread and unwritten."""
    outside, inside = tmp_path / "outside", tmp_path / "root"
    (outside / "deep").mkdir(parents=True)
    (outside / "secret.txt").write_text("SECRET\n")
    (tmp_path / "root-too").mkdir()
    (tmp_path / "root-too" / "secret.txt").write_text("SECRET\n")
    (inside / "sub").mkdir(parents=True)
    (inside / "a.txt").write_text("one\ntwo\nthree\n")
    (inside / "sub" / "b.py").write_text("def Hello():\n    pass\n")
    (inside / "near").symlink_to("sub/b.py")
    (inside / "link").symlink_to(outside / "secret.txt")
    (inside / "linkdir").symlink_to(outside)
    (inside / "dangling").symlink_to(outside / "new.txt")
    (inside / "zero").symlink_to("/dev/zero")
    (inside / "circle").symlink_to("circle")
    os.mkfifo(inside / "fifo")
    return inside


# Confinement


OUT_OF_ROOT = {
    "dots": "../../etc/passwd",
    "beside": "../outside/secret.txt",
    "beside with the same beginning": "../root-too/secret.txt",
    "dots after a folder": "sub/../../outside/secret.txt",
    "dots after what is missing": "no/such/../../../outside/secret.txt",
    "absolute": "/etc/passwd",
    "two slashes": "//etc/passwd",
    "link to a file": "link",
    "link to a folder": "linkdir",
    "through a link": "linkdir/secret.txt",
    "through a link and back": "linkdir/../outside/secret.txt",
    "link to nothing": "dangling",
    "new file through a link": "linkdir/new.txt",
    "new folder through a link": "linkdir/new/new.txt",
    "device by a link": "zero",
    "device": "/dev/zero",
    "root of the system": "/",
    "parent": "..",
    "this process": "/proc/self/environ",
    "beyond a circle": "circle/../linkdir/secret.txt",
    "NUL": "a.txt\0.png",
    "surrogate": "\ud800",
    "long": MEGABYTE,
    "long with steps": "a/" * 500_000,
    "empty": "",
}


def outside_of(root: Path) -> dict[str, str]:
    found = [p for p in root.parent.rglob("*") if not p.is_relative_to(root) and p.is_file()]
    return {str(p): p.read_text() for p in found}


@pytest.mark.parametrize("path", OUT_OF_ROOT.values(), ids=OUT_OF_ROOT)
def test_no_way_out_of_the_root(root: Path, path: str) -> None:
    before = outside_of(root)
    assert "SECRET" not in refused("read_file", root, path=path)
    refused("write_file", root, path=path, content="gotcha")
    assert "SECRET" not in refused("list_dir", root, path=path)
    assert "SECRET" not in refused("search_files", root, path=path, text="S")
    assert outside_of(root) == before
    for name in ("read_file", "write_file", "list_dir", "search_files"):
        with pytest.raises(Refused):
            check(name, {"path": path}, [root])


def test_a_path_outside_is_told_with_the_root(root: Path) -> None:
    assert refused("read_file", root, path="../x\n\x1b[31m") == (
        f"../x\\n\\x1b[31m is outside of {root}; only what is inside may be used\n"
    )


def test_what_is_inside_is_found_however_it_is_spelled(root: Path) -> None:
    for path in ("a.txt", "./a.txt", "sub/../a.txt", str(root / "a.txt"), "a.txt/"):
        assert confined(path, [root]) == root / "a.txt"
    assert confined("near", [root]) == root / "sub" / "b.py"
    assert confined("~/x", [root]) == root / "~" / "x"
    assert confined("new/er", [root]) == root / "new" / "er"
    assert confined(".", [root]) == root
    assert confined("/etc/passwd", [Path("/")]) == Path("/etc/passwd")


def test_a_root_may_itself_be_a_link_and_there_may_be_several(root: Path, tmp_path: Path) -> None:
    (tmp_path / "alias").symlink_to(root)
    roots = [tmp_path / "alias", tmp_path / "outside"]
    assert confined("a.txt", roots) == root / "a.txt"
    assert confined("../outside/secret.txt", roots) == tmp_path / "outside" / "secret.txt"
    config = {"roots": [str(r) for r in roots]}
    assert good("read_file", root, path="linkdir/secret.txt", config=config) == "SECRET\n"
    found = good("search_files", root, path=str(tmp_path / "outside"), text="secret", config=config)
    assert found == f"{tmp_path}/outside/secret.txt:1: SECRET\n"


@pytest.mark.parametrize("swapped", ["sub", "sub/b.py"])
def test_a_link_that_is_put_in_after_the_check(
    root: Path, tmp_path: Path, swapped: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "outside" / "b.py").write_text("SECRET\n")
    checked = placed("sub/b.py", [root])
    monkeypatch.setattr(files, "placed", lambda path, roots: checked)
    (root / swapped).rename(tmp_path / "away")
    (root / swapped).symlink_to(tmp_path / "outside" / ("b.py" if swapped.endswith(".py") else "."))
    assert (root / "sub" / "b.py").read_text() == "SECRET\n"
    with pytest.raises(Refused):
        files.read_file("sub/b.py", roots=[root], max_output=1000)
    with pytest.raises(Refused):
        files.write_file("sub/b.py", "gotcha", roots=[root])
    assert (tmp_path / "outside" / "b.py").read_text() == "SECRET\n"


def test_what_is_no_file_is_never_waited_for(root: Path) -> None:
    started = time.monotonic()
    assert "no regular file" in refused("read_file", root, path="fifo")
    assert "no regular file" in refused("write_file", root, path="fifo", content="x")
    assert "no folder" in refused("list_dir", root, path="fifo")
    assert "no regular file" in refused("search_files", root, path="fifo", text="x")
    assert "no regular file" in refused("read_file", Path("/dev"), path="zero")
    assert time.monotonic() - started < 20


def test_a_module_that_a_tool_has_written_is_not_imported(root: Path, tmp_path: Path) -> None:
    """Where the root is the folder that holds glmchat itself."""
    package = tmp_path / "top" / "glmchat"
    shutil.copytree(MAIN.parents[2], package, ignore=shutil.ignore_patterns("demo", "__pycache__"))
    for name in ("json", "typing", "importlib", "dataclasses", "pathlib", "re", "stat", "codecs", "shlex"):
        (tmp_path / "top" / f"{name}.py").write_text("raise SystemExit('hijacked')\n")
    main = package / "tools" / "builtin" / "__main__.py"
    assert good("read_file", root, main=main, path="a.txt") == "one\ntwo\nthree\n"


def test_arguments_that_are_not_declared(root: Path) -> None:
    assert "no others" in refused("read_file", root, path="a.txt", roots=["/"])
    assert "no others" in refused("http_get", root, url="http://127.0.0.1:1/", private=True)
    assert "no others" in refused("read_file", root)
    assert "no built-in tool" in refused("run_command", root, command="ls")


# read_file


def test_read_file(root: Path) -> None:
    assert good("read_file", root, path="a.txt") == "one\ntwo\nthree\n"
    assert good("read_file", root, path="a.txt", first_line=2) == "two\nthree\n[Lines 2 to 3 of 3.]"
    assert good("read_file", root, path="a.txt", first_line=2, lines=1) == "two\n[Lines 2 to 2 of 3.]"
    assert good("read_file", root, path="a.txt", lines=3) == "one\ntwo\nthree\n"
    assert refused("read_file", root, path="a.txt", first_line=4) == "a.txt has no line 4; it has 3\n"
    assert "list_dir" in refused("read_file", root, path="sub")
    assert "no such file" in refused("read_file", root, path="none.txt")


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "[The file is empty.]"),
        (b"\xef\xbb\xbfbom\r\n", "bom\r\n"),
        ("ü€😀".encode(), "ü€😀"),
    ],
)
def test_read_file_gives_what_is_there(root: Path, data: bytes, text: str) -> None:
    (root / "data").write_bytes(data)
    assert files.read_file("data", roots=[root], max_output=1000) == text


@pytest.mark.parametrize("data", [b"ab\0cd", b"\xff\xfea\0", b"caf\xe9\n", b"\xed\xa0\x80", b"cut \xe2\x82"])
def test_binary_files_are_refused(root: Path, data: bytes) -> None:
    (root / "data").write_bytes(data)
    assert re.search("binary|not UTF-8", refused("read_file", root, path="data"))


def test_a_long_file_is_read_on_where_it_was_cut(root: Path) -> None:
    whole = "".join(f"line {n} ü\n" for n in range(1, 2001))
    (root / "long").write_text(whole)
    text, first = "", 1
    for _ in range(100):
        part = files.read_file("long", first, roots=[root], max_output=4000)
        assert len(part.encode()) <= 4000
        kept, _, note = part.rpartition("[Lines ")
        text += kept
        following = re.search(r" of 2,000\. No more fits; read on with first_line=(\d+)\.\]$", note)
        if following is None:
            break
        first = int(following[1])
    assert text == whole


def test_one_endless_line_and_a_huge_file(root: Path) -> None:
    (root / "line").write_text("é" * 100_000)
    text = good("read_file", root, path="line")
    assert text.startswith("ééé")
    assert text.endswith("é\n[Line 1 is cut here, since it is longer than what fits.]")
    assert len(text.encode()) <= 65536
    with (root / "huge").open("wb") as file:
        file.write(b"begin\n" * 20_000)
        file.truncate(10 * 2**30)  # a hole, which takes no room on the disk
    started = time.monotonic()
    assert good("read_file", root, path="huge").endswith("No more fits; read on with first_line=10890.]")
    assert "binary" in refused("read_file", root, path="huge", first_line=30_000)
    assert time.monotonic() - started < 10


# list_dir


def test_list_dir(root: Path, tmp_path: Path) -> None:
    (root / "big").write_bytes(b"x" * 12345)
    (root / "odd\nname").write_text("")
    (root / os.fsdecode(b"no-utf8-\xff")).write_text("")
    assert good("list_dir", root).splitlines() == [
        "a.txt  14 bytes",
        "big  12,345 bytes",
        "circle -> circle",
        f"dangling -> {tmp_path}/outside/new.txt",
        "fifo  no regular file",
        f"link -> {tmp_path}/outside/secret.txt",
        f"linkdir -> {tmp_path}/outside",
        "near -> sub/b.py",
        "no-utf8-\\udcff  0 bytes",
        "odd\\nname  0 bytes",
        "sub/",
        "zero -> /dev/zero",
    ]
    assert good("list_dir", root, path="sub") == "b.py  22 bytes"
    (root / "empty").mkdir()
    assert good("list_dir", root, path="empty") == "[The folder is empty.]"
    assert "no folder" in refused("list_dir", root, path="a.txt")
    for n in range(1002):
        (root / "empty" / f"{n:04}").touch()
    lines = good("list_dir", root, path="empty").splitlines()
    assert (len(lines), lines[-1]) == (1001, "[2 more entries are not shown.]")


# search_files


def test_search_files(root: Path) -> None:
    for skipped in (".git", "node_modules", "__pycache__", ".venv"):
        (root / "sub" / skipped).mkdir()
        (root / "sub" / skipped / "x").write_text("hello")
    (root / "binary").write_bytes(b"hello\0")
    (root / "large").write_bytes(b"hello\n" * 1_000_000)
    (root / "latin").write_bytes(b"caf\xe9 hello\r\n")
    (root / "z").mkdir()
    (root / "z" / "wide").write_text("-" * 1000 + "HELLO" + "-" * 1000)
    lines = good("search_files", root, text="hello").splitlines()
    assert lines[:2] == ["latin:1: caf� hello", "sub/b.py:1: def Hello():"]
    assert re.fullmatch("z/wide:1: …-{100}HELLO-{195}…", lines[2])
    assert len(lines) == 3
    assert good("search_files", root, text="Hello") == "sub/b.py:1: def Hello():\n"
    assert good("search_files", root, text="hello", files="**/*.py") == "sub/b.py:1: def Hello():\n"
    assert good("search_files", root, text="hello", path="sub/b.py") == "sub/b.py:1: def Hello():\n"
    assert good("search_files", root, text="h.llo") == "[No line holds h.llo; 4 files were searched.]\n"
    assert "line by line" in refused("search_files", root, text="a\nb")
    assert "empty" in refused("search_files", root, text="")
    assert "put it in path" in refused("search_files", root, text="a", files="sub/*.py")
    assert "no such" in refused("search_files", root, text="a", path="none")


def test_search_files_stops_at_two_hundred_hits(root: Path) -> None:
    (root / "many").write_text("needle\n" * 201)
    lines = good("search_files", root, text="needle").splitlines()
    assert (lines[199], len(lines)) == ("many:200: needle", 201)
    assert lines[200] == "[There are more than these 200 hits. Narrow path, files or text.]"
    (root / "many").write_text("needle\n" * 200)
    assert len(good("search_files", root, text="needle").splitlines()) == 200


def test_search_files_tells_what_it_has_found_so_far(root: Path) -> None:
    """The first hit comes before the second file is read."""
    (root / "a.txt").write_text("needle")
    hits = search.search_files("needle", roots=[root])
    assert next(hits) == "a.txt:1: needle\n"
    (root / "sub" / "b.py").write_text("needle")
    assert list(hits) == ["sub/b.py:1: needle\n"]


# write_file


def test_write_file(root: Path) -> None:
    assert good("write_file", root, path="new/er/ü.txt", content="hé\0") == (
        "Wrote 4 bytes to new/er/ü.txt. It is new."
    )
    assert (root / "new" / "er" / "ü.txt").read_bytes() == "hé\0".encode()
    (root / "a.txt").chmod(0o751)
    assert good("write_file", root, path=str(root / "a.txt"), content="") == (
        "Wrote 0 bytes to a.txt. It replaced the file that was there."
    )
    assert (root / "a.txt").read_bytes() == b""
    assert (root / "a.txt").stat().st_mode & 0o777 == 0o751
    good("write_file", root, path="near", content="by a link")
    assert (root / "near").is_symlink()
    assert (root / "sub" / "b.py").read_text() == "by a link"
    assert "folder" in refused("write_file", root, path="sub", content="x")
    assert "folder" in refused("write_file", root, path="other/", content="x")
    assert "folder" in refused("write_file", root, path=".", content="x")
    assert "through a file" in refused("write_file", root, path="a.txt/x", content="x")
    assert "surrogate" in refused("write_file", root, path="x", content="\udc00")
    assert not list(root.rglob("*.tmp"))


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = sorted(root.rglob("*"))

    def fail(*_: Any, **__: Any) -> None:
        raise SystemExit(143)

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(SystemExit):
        files.write_file("a.txt", "new", roots=[root])
    monkeypatch.undo()
    most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, most[1]))
    try:
        with pytest.raises(Refused, match="too large"):
            files.write_file("a.txt", "x" * 2000, roots=[root])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, most)
    assert (root / "a.txt").read_text() == "one\ntwo\nthree\n"
    assert sorted(root.rglob("*")) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is read-only for root")
def test_a_file_that_is_read_only_is_not_replaced(root: Path) -> None:
    (root / "a.txt").chmod(0o444)
    assert "may not be written" in refused("write_file", root, path="a.txt", content="x")


# current_time and calculate


def test_current_time(root: Path) -> None:
    form = r"\d{4}-\d\d-\d\d \d\d:\d\d [A-Z][a-z]+day, UTC[+-]\d\d:\d\d \(%s\)"
    assert re.fullmatch(form % "[^)]+", good("current_time", root))
    assert re.fullmatch(form % "Europe/Oslo", good("current_time", root, timezone="Europe/Oslo"))
    moment = datetime(2026, 11, 25, 14, 3, tzinfo=timezone(timedelta(hours=-3, minutes=-30)))
    assert clock.told(moment, "X") == "2026-11-25 14:03 Wednesday, UTC-03:30 (X)"
    for zone in (
        "Mars/Base",
        "Europe",
        "../../etc/passwd",
        "/etc/passwd",
        "x\0",
        "\ud800",
        MEGABYTE,
        "zone.tab",
    ):
        refused("current_time", root, timezone=zone)
    assert "Europe/Oslo" in refused("current_time", root, timezone="Oslo")


@pytest.mark.parametrize(
    ("expression", "result"),
    [
        ("0.1+0.2", "0.3"),
        ("2 * (3 + 4) ^ 2", "98"),
        ("2**100", "1267650600228229401496703205376"),
        ("10**20/10", "10000000000000000000"),
        ("7/2", "3.5"),
        ("7//2 + 7%4", "6"),
        ("-2 ** 2", "-4"),
        ("3 × 4 − 6 ÷ 3", "10"),
        ("-0.0", "0"),
        ("1e3", "1000"),
        ("1/3", "0.333333333333333"),
        ("factorial(25)", "15511210043330985984000000"),
        ("sqrt(16) + abs(-2) + floor(2.5) + ceil(2.5)", "11"),
        ("round(2.345, 2) + min(3, 1, 2) + max(1, 2)", "5.35"),
        ("log(e) + log2(8) + log10(1000) + log(9, 3)", "9"),
        ("sin(pi/2) + cos(0) + tan(0) + exp(0)", "3"),
        ("1" + "+1" * 300, "301"),
    ],
)
def test_calculate(expression: str, result: str) -> None:
    assert arithmetic.calculate(expression) == result


@pytest.mark.parametrize(
    ("expression", "says"),
    [
        ("9**9**9**9", "too large"),
        ("2**10**9", "too large"),
        ("(10**3000)*(10**3000)", "too large"),
        ("1e308*10", "too large"),
        ("1e999", "too large"),
        ("10**400 * 0.5", "too large"),
        ("2.5**(10**9)", "too large"),
        ("exp(1000)", "too large"),
        ("factorial(1e5)", "whole numbers"),
        ("factorial(100000)", "whole numbers"),
        ("factorial(-1)", "whole numbers"),
        ("round(5, -10**9)", "places"),
        ("1/0", "division by zero"),
        ("1%0", "division by zero"),
        ("0**-1", "division by zero"),
        ("log(8, 1)", "division by zero"),
        ("sqrt(-1)", "not defined for -1"),
        ("(-8)**0.5", "no real number"),
        ("1,234 + 1", "commas"),
        ("max()", "max does not take"),
        ("(" * 1000 + "1" + ")" * 900, "deep|arithmetic"),
        ("-" * 1900 + "1", "deep"),
        ("1" + "+1" * 900, "deep"),
        ("not " * 400 + "1", "cannot be calculated|deep"),
        ("1" * 5000, "longer than"),
        (MEGABYTE, "longer than"),
        ("", "empty"),
        ("   ", "arithmetic"),
        ("2 +", "arithmetic"),
        ("007", "arithmetic"),
        ("1\0", "NUL"),
        ("\ud800", "surrogate"),
        ("__import__('os').system('id')", "cannot be calculated"),
        ("(1).__class__", "cannot be calculated"),
        ("[x for x in (1,)]", "cannot be calculated"),
        ("lambda: 1", "cannot be calculated"),
        ("True", "cannot be calculated"),
        ("'a' * 10**9", "cannot be calculated"),
        ("f'{1:>999999999}'", "cannot be calculated"),
        ("1j", "cannot be calculated"),
        ("1 if 1 else 2", "cannot be calculated"),
        ("1 << 10**9", "cannot be calculated"),
        ("max(*[1])", "cannot be calculated"),
        ("round(1.5, places=1)", "cannot be calculated"),
        ("eval(1)", "eval cannot be calculated"),
        ("(x := 1)", "cannot be calculated"),
    ],
)
def test_what_cannot_be_calculated_is_refused_at_once(expression: str, says: str) -> None:
    started = time.monotonic()
    with pytest.raises(Refused, match=says):
        arithmetic.calculate(expression)
    assert time.monotonic() - started < 1


def test_calculate_as_it_is_run(root: Path) -> None:
    assert good("calculate", root, expression="6*7") == "42"
    refused("calculate", root, expression="9**9**9**9")
    refused("calculate", root, expression="1or 2")  # of which Python itself warns
    refused("calculate", root, expression="(" * 1999)


# run_command


@pytest.mark.parametrize(
    ("command", "result"),
    [
        ("git log --oneline -5", ["git", "log", "--oneline", "-5"]),
        ("grep -n 'a | b' \"c;d\" e\\;f", ["grep", "-n", "a | b", "c;d", "e;f"]),
        ("echo '$(id) `id`' \"a\\`b\" $HOME", ["echo", "$(id) `id`", "a\\`b", "$HOME"]),
        ("awk '{print $1; print $2}' f", ["awk", "{print $1; print $2}", "f"]),
        ("python -c 'a = 1\nprint(a)'", ["python", "-c", "a = 1\nprint(a)"]),
        ("  ls  \n", ["ls"]),
        ("ls # no comment", ["ls", "#", "no", "comment"]),
    ],
)
def test_words_of_a_command(command: str, result: list[str]) -> None:
    assert words(command) == result
    check("run_command", {"command": command}, [])


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("cat a | grep b", r"has \| outside"),
        ("a && b", "has & outside"),
        ("sleep 1 &", "has & outside"),
        ("a; b", "has ; outside"),
        ("a < b", "has < outside"),
        ("a >b", "has > outside"),
        ("a 2>&1", "has > outside"),
        ("echo $(id)", r"has \( outside"),
        ("echo `id`", "has ` outside"),
        ('echo "`id`"', "has ` "),
        ('echo "$(id)"', r"has \$\( "),
        ("(id)", r"has \( outside"),
        ("a\nb", "has a line break outside"),
        ("a \\\n b", "has a line break outside"),
        ("curl http://x/?a=1&b=2", "single quotes"),
        ("echo 'a", "no closing quotation"),
        ('echo "a', "no closing quotation"),
        ("echo a\\", "no escaped character"),
        ("", "empty"),
        ("  \n", "no program"),
        ("'' a", "no program"),
        ("a \0", "NUL"),
        ("a \ud800", "surrogate"),
        (None, "no text"),
    ],
)
def test_what_only_a_shell_could_run_is_refused(command: Any, says: str) -> None:
    with pytest.raises(Refused, match=says):
        words(command)
    with pytest.raises(Refused, match=says):
        check("run_command", {"command": command}, [])


# http_get


@dataclass
class Server:
    """A real server on this machine that remembers what was asked of it."""

    port: int
    answers: dict[str, tuple[int, dict[str, str], bytes]] = field(default_factory=dict)
    seen: list[str] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)

    def says(self, path: str, body: bytes, kind: str = "", status: int = 200, **headers: str) -> str:
        given = {"Content-Length": str(len(body)), **headers}
        self.answers[path] = (status, {**given, "Content-Type": kind} if kind else given, body)
        return f"http://127.0.0.1:{self.port}{path}"

    def redirects(self, path: str, to: str) -> str:
        return self.says(path, b"", status=302, Location=to)


def serve(address: str, tls: ssl.SSLContext | None = None) -> Iterator[Server]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found.seen.append(self.path)
            found.headers.append(dict(self.headers.items()))
            status, headers, body = found.answers.get(self.path, (404, {}, b"nothing here"))
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    class Quiet(socketserver.ThreadingTCPServer):
        daemon_threads = True

        def handle_error(self, request: Any, client_address: Any) -> None:
            pass  # a client that does not trust the certificate goes away

    with Quiet((address, 0), Handler) as server:
        if tls is not None:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        found = Server(server.server_address[1])
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield found
        server.shutdown()
        thread.join()


@pytest.fixture
def server() -> Iterator[Server]:
    yield from serve("127.0.0.1")


@pytest.fixture
def hidden() -> Iterator[Server]:
    """One at another address of this machine, which counts as private where 127.0.0.1 counts as public."""
    try:
        yield from serve("127.0.0.2")
    except OSError:
        pytest.skip("this system has one loopback address only")


def seems_public(address: str) -> bool:
    return address == "127.0.0.1" or public(address)


@pytest.fixture
def no_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing but the resolver that a test gives is asked for names."""

    def fail(*_: Any, **__: Any) -> Any:
        raise AssertionError("a name was looked up")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    monkeypatch.setattr(socket, "create_connection", fail)


def names(**known: str) -> Callable[[str, int], list[str]]:
    """`public_test="127.0.0.1"` is the name `public.test`; literal addresses are found as they are."""

    def resolve(host: str, port: int) -> list[str]:
        return known.get(host.replace(".", "_"), host).split()

    return resolve


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:{port}/",
        "http://localhost:{port}/",
        "http://LOCALHOST:{port}/",
        "http://2130706433:{port}/",
        "http://0x7f.1:{port}/",
        "http://0x7f000001:{port}/",
        "http://0177.0.0.1:{port}/",
        "http://127.1:{port}/",
        "http://127.0.0.1.:{port}/",
        "http://１２７.0.0.1:{port}/",
        "http://0:{port}/",
        "http://0.0.0.0:{port}/",
        "http://[::1]:{port}/",
        "http://[::]:{port}/",
        "http://[::ffff:127.0.0.1]:{port}/",
        "http://[::ffff:7f00:1]:{port}/",
        "http://[64:ff9b::7f00:1]:{port}/",
        "http://[::1%25lo]:{port}/",
        "http://[fe80::1%eth0]:{port}/",
        "http://example.com@127.0.0.1:{port}/",
        "http://127.0.0.1:{port}\\@example.com/",
        "http://127.0.0.1:{port}#@example.com/",
        "http://10.0.0.1/",
        "http://169.254.169.254/latest/meta-data/",
        "http://100.64.0.1/",
        "http://user:pw@example.com/",
        "https://127.0.0.1:{port}/",
        "file:///etc/passwd",
        "FILE:///etc/passwd",
        "ftp://127.0.0.1:{port}/",
        "gopher://127.0.0.1:{port}/_x",
        "data:text/plain,hi",
        "//127.0.0.1:{port}/",
        "127.0.0.1:{port}",
        "http:127.0.0.1:{port}",
        "http://",
        "http:///etc/passwd",
        "http://[::1",
        "http://127.0.0.1:99999/",
        "http://127.0.0.1:0/",
        "http://127.0.0.1:{port}/ HTTP/1.1\r\nX: y",
        "http://a b/",
        "http://" + "a" * 70 + ".test/",
        "",
        "\0",
        "http://\ud800/",
        "http://x/" + MEGABYTE,
    ],
    ids=lambda url: ascii(url[:50]),
)
def test_urls_that_are_not_fetched(server: Server, root: Path, url: str) -> None:
    server.says("/", b"SECRET")
    started = time.monotonic()
    assert "SECRET" not in refused("http_get", root, url=url.replace("{port}", str(server.port)))
    assert server.seen == []
    assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("file:///etc/passwd", "only http:// and https://"),
        ("ftp://example.com/", "only http:// and https://"),
        ("http://user:pw@example.com", "user name"),
        ("http://user@example.com", "user name"),
        ("http://example.com\\", "backslash"),
        (5, "no text"),
    ],
)
def test_what_is_wrong_with_a_url_is_told_before_a_person_is_asked(url: Any, says: str) -> None:
    with pytest.raises(Refused, match=says):
        check("http_get", {"url": url}, [])
    check("http_get", {"url": "https://example.com/a?b=c"}, [])


def test_the_parts_of_a_url() -> None:
    assert target(" http://Bücher.Example:81/ä b?q=ü%20#part ")[1:] == (
        "http",
        "xn--bcher-kva.example",
        81,
        "/%C3%A4%20b?q=%C3%BC%20",
    )
    assert target("https://[2001:db8::1]")[1:] == ("https", "2001:db8::1", 443, "/")


NOT_PUBLIC = """
    0.0.0.0 0.1.2.3 10.0.0.1 10.255.255.255 100.64.0.1 100.127.255.255 100.100.100.200 127.0.0.1
    127.255.255.254 169.254.169.254 172.16.0.1 172.31.255.255 192.0.0.1 192.0.0.170 192.0.2.1
    192.88.99.1 192.168.0.1 198.18.0.1 198.19.255.255 198.51.100.1 203.0.113.1 224.0.0.1
    239.255.255.255 240.0.0.1 255.255.255.255 :: ::1 ::127.0.0.1 ::8.8.8.8 ::ffff:0:0
    ::ffff:127.0.0.1 ::ffff:10.0.0.1 ::ffff:a9fe:a9fe ::ffff:0:8.8.8.8 64:ff9b::127.0.0.1
    64:ff9b::a00:1 64:ff9b::169.254.169.254 64:ff9b:1::808:808 100::1 2001::1
    2001:0:4136:e378:8000:63bf:3fff:fdd2 2001:2::1 2001:10::1 2001:20::1 2001:db8::1 2002:7f00:1::
    2002:a00:1::1 2002:808:808::1 3fff::1 5f00::1 fc00::1 fd00:ec2::254 fdff::1 fe80::1 fe80::1%eth0
    fec0::1 ff02::1 ff0e::1 localhost 127.1 2130706433 0x7f.1 010.8.8.8 8.8.8.8.
"""

PUBLIC = """
    1.1.1.1 8.8.8.8 9.255.255.255 11.0.0.0 100.63.255.255 100.128.0.0 126.0.0.1 128.0.0.1
    169.253.0.1 172.15.0.1 172.32.0.1 192.0.1.1 192.167.0.1 192.169.0.1 198.17.0.1 198.20.0.1
    203.0.112.1 223.255.255.255 2606:4700:4700::1111 2001:4860:4860::8888 2001:200::1
    2a00:1450:4001:80b::200e ::ffff:8.8.8.8 64:ff9b::808:808
"""


@pytest.mark.parametrize("address", NOT_PUBLIC.split())
def test_addresses_that_are_not_public(address: str) -> None:
    assert not public(address)


@pytest.mark.parametrize("address", PUBLIC.split())
def test_addresses_that_are_public(address: str) -> None:
    assert public(address)


@pytest.mark.usefixtures("no_names")
class TestWhereItConnects:
    def test_a_name_with_a_private_address(self, server: Server) -> None:
        url = f"http://inside.test:{server.port}/"
        for answer in ("127.0.0.1", "::1", "10.0.0.1", "93.184.215.14 127.0.0.1", "::ffff:127.0.0.1"):
            with pytest.raises(Refused, match="no public address"):
                web.fetch(url, names(inside_test=answer), public)
        assert server.seen == []

    def test_a_name_server_that_changes_its_mind(self, server: Server, hidden: Server) -> None:
        url = server.says("/", b"public", "text/plain").replace("127.0.0.1", "rebind.test")
        hidden.says("/", b"SECRET", "text/plain")
        asked: list[str] = []

        def resolve(host: str, port: int) -> list[str]:
            asked.append(host)
            return ["127.0.0.1"] if len(asked) == 1 else ["127.0.0.2"]

        assert web.fetch(url, resolve, seems_public) == "public"
        assert asked == ["rebind.test"]
        assert server.headers[0]["Host"] == f"rebind.test:{server.port}"
        assert hidden.seen == []

    @pytest.mark.parametrize(
        "location", ["http://127.0.0.2:{port}/", "http://inside.test:{port}/", "//127.0.0.2:{port}/"]
    )
    def test_a_redirect_to_a_private_address(self, server: Server, hidden: Server, location: str) -> None:
        hidden.says("/", b"SECRET")
        url = server.redirects("/", location.replace("{port}", str(hidden.port)))
        with pytest.raises(Refused, match=r"is at 127\.0\.0\.2, which is no public address"):
            web.fetch(url, names(inside_test="127.0.0.2"), seems_public)
        assert (server.seen, hidden.seen) == (["/"], [])

    def test_a_redirect_whose_name_has_moved_inside(self, server: Server, hidden: Server) -> None:
        hidden.says("/two", b"SECRET")
        url = server.redirects("/one", f"http://rebind.test:{hidden.port}/two").replace(
            "127.0.0.1", "rebind.test"
        )
        answers = iter([["127.0.0.1"], ["127.0.0.2"]])
        with pytest.raises(Refused, match="no public address"):
            web.fetch(url, lambda host, port: next(answers), seems_public)
        assert hidden.seen == []

    @pytest.mark.parametrize(
        ("location", "says"),
        [
            ("file:///etc/passwd", "only http"),
            ("gopher://127.0.0.1/", "only http"),
            ("http://user:pw@127.0.0.1/", "user name"),
            ("http://[::1", "no valid URL"),
            ("http://[fe80::1%25eth0]/", "no valid"),
        ],
    )
    def test_a_redirect_to_what_is_no_web_address(self, server: Server, location: str, says: str) -> None:
        with pytest.raises(Refused, match=says):
            web.fetch(server.redirects("/", location), names(), seems_public)
        assert server.seen == ["/"]

    def test_redirects_are_followed_five_times(self, server: Server) -> None:
        for n in range(6):
            server.redirects(f"/{n}", f"{n + 1}")
        server.says("/6", b"there", "text/plain")
        base = f"http://127.0.0.1:{server.port}"
        assert web.fetch(f"{base}/1", names(), seems_public) == "there"
        with pytest.raises(Refused, match="more than 5 times"):
            web.fetch(f"{base}/0", names(), seems_public)

    def test_a_redirect_with_letters_beyond_ascii(self, server: Server) -> None:
        url = server.redirects("/", "/ä b".encode().decode("latin-1"))
        server.says("/%C3%A4%20b", b"there", "text/plain")
        assert web.fetch(url, names(), seems_public) == "there"

    def test_the_next_address_is_tried(self, server: Server) -> None:
        url = server.says("/", b"there", "text/plain").replace("127.0.0.1", "two.test")
        assert web.fetch(url, names(two_test="127.0.0.3 127.0.0.1"), lambda _: True) == "there"

    def test_servers_that_do_not_answer_well(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(wire, "_TIMEOUT_S", 0.2)
        for said, says in ((b"", "within"), (b"hello\r\n\r\n", "no valid HTTP"), (b"HTTP/1.1 2", "within")):
            with socket.create_server(("127.0.0.1", 0)) as silent:
                url = f"http://127.0.0.1:{silent.getsockname()[1]}/"

                def answer(silent: socket.socket = silent, said: bytes = said) -> None:
                    client, _ = silent.accept()
                    with client:
                        client.sendall(said)
                        client.recv(10_000)
                        client.recv(10_000)

                thread = threading.Thread(target=answer)
                thread.start()
                with pytest.raises(Refused, match=says):
                    web.fetch(url, names(), seems_public)
                thread.join()
        with pytest.raises(Refused, match="cannot be reached"):
            web.fetch(url, names(), seems_public)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("openssl") is None:
        pytest.skip("no openssl to make a certificate with")
    pem = tmp_path_factory.mktemp("tls") / "server.pem"
    made = (
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=secure.test"
    )
    files_of = ["-keyout", str(pem), "-out", str(pem.with_suffix(".crt"))]
    subprocess.run(
        [*made.split(), "-addext", "subjectAltName=DNS:secure.test", *files_of],
        check=True,
        capture_output=True,
    )
    pem.write_bytes(pem.read_bytes() + pem.with_suffix(".crt").read_bytes())
    return pem


@pytest.fixture
def secure(certificate: Path) -> Iterator[Server]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    yield from serve("127.0.0.1", context)


@pytest.mark.usefixtures("no_names")
class TestEncrypted:
    def test_the_certificate_is_checked_against_the_name(
        self, secure: Server, certificate: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        secure.says("/", b"there", "text/plain")
        url = f"https://secure.test:{secure.port}/"
        known = names(secure_test="127.0.0.1", other_test="127.0.0.1")
        with pytest.raises(Refused, match=r"secure\.test has no valid certificate: self"):
            web.fetch(url, known, seems_public)
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate.with_suffix(".crt")))
        with pytest.raises(Refused, match="no valid certificate: Hostname mismatch"):
            web.fetch(url.replace("secure", "other"), known, seems_public)
        assert secure.seen == []
        assert web.fetch(url, known, seems_public) == "there"

    def test_a_redirect_does_not_leave_encryption(
        self, secure: Server, server: Server, certificate: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate.with_suffix(".crt")))
        secure.redirects("/", server.says("/", b"plain", "text/plain"))
        with pytest.raises(Refused, match="not encrypted"):
            web.fetch(f"https://secure.test:{secure.port}/", names(secure_test="127.0.0.1"), seems_public)
        assert server.seen == []


def test_http_get_where_private_addresses_are_allowed(
    server: Server, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = {"private": True}
    url = server.says("/j", b'{"a": [1, 2]}', "application/json; charset=utf-8")
    assert good("http_get", root, url=url, config=config) == '{"a": [1, 2]}'
    assert good("http_get", root, url=url.replace("127.0.0.1", "localhost"), config=config)[0] == "{"
    assert server.headers[0]["User-Agent"] == "glmchat"
    url = server.says("/h", "<title>Ü</title><p>a<script>x</script>".encode(), "text/html")
    assert good("http_get", root, url=url, config=config) == "Ü\n\na"
    url = server.says("/big", b"x" * 5_000_001, "text/plain")
    assert good("http_get", root, url=url, config=config).endswith(
        "xx\n[This is the beginning: 5,000,000 of 5,000,001 bytes.]"
    )
    url = server.says("/p", b"\x89PNG" + bytes(2000), "image/png")
    assert refused("http_get", root, url=url, config=config) == (
        f"{url} is image/png, 2,004 bytes; only text can be read\n"
    )
    failed = call("http_get", root, url=url.replace("/p", "/none"), config=config)
    assert failed == (1, "nothing here", f"http://127.0.0.1:{server.port}/none answered 404 Not Found\n")


def test_proxies_of_the_environment_are_not_asked(
    server: Server, hidden: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.2:{hidden.port}")
    url = server.says("/", b"direct", "text/plain")
    assert web.fetch(url, names(), seems_public) == "direct"
    assert hidden.seen == []


@pytest.mark.parametrize(
    ("body", "kind", "text"),
    [
        (b"caf\xe9", "text/plain; charset=iso-8859-1", "café"),
        ("ü".encode(), "text/plain", "ü"),
        (b"\xef\xbb\xbf[]", "application/json", "[]"),
        (b"\xff ok", "text/plain; charset=utf-8", "� ok"),
        (b"6869", "text/plain; charset=hex", "6869"),
        (b"hi", "text/plain; charset=no-such", "hi"),
        (b"<meta charset='windows-1252'>\x80", "text/html", "€"),
        (b"<a>", "application/vnd.x+xml", "<a>"),
        (b"no type", "", "no type"),
        (b"", "text/plain", "[The answer is empty.]"),
    ],
)
def test_what_counts_as_text(server: Server, body: bytes, kind: str, text: str) -> None:
    assert web.fetch(server.says("/", body, kind), names(), seems_public) == text


def test_what_does_not_count_as_text(server: Server) -> None:
    for body, kind in ((b"PK\0", ""), (b"PK", "application/zip"), (b"%PDF", "application/pdf")):
        with pytest.raises(Refused, match="only text"):
            web.fetch(server.says("/", body, kind), names(), seems_public)
    url = server.says("/", b"\x1f\x8b", "text/plain", **{"Content-Encoding": "gzip"})
    with pytest.raises(Refused, match=r"compressed \(gzip\)"):
        web.fetch(url, names(), seems_public)


def test_a_page_as_text() -> None:
    html = """<!doctype html><html><head><title>The  title</title><style>p {}</style>
    <script>if (a < b) alert("</p>")</script></head><body><![if !IE]><!-- [if IE]><p>old</p><![endif]-->
    <h2>Head<b>ing</b></h2><p>One &amp; two&nbsp;&#8364;
    three<br>four</p><p></p><div><div>
    <a href="/x?a=1&amp;b=2">a link</a>, <a href="#top">top</a>, <a href="javascript:x()">js</a>,
    <a href="https://e.test/">https://e.test/</a> <a href="http://[">bad</a> <a href="y"><img alt="pic"></a>
    </div></div>
    <ul><li>a<li>b</ul><svg><text>drawn</text></svg><template>no</template>
    <table><tr><th>k</th><th>v</th></tr><tr><td>1</td><td>2</td></tr></table>
    <pre>def f():
    return 1


# end</pre>tail <a href="/open">not closed"""
    assert page.text(html, "https://h.test/d/").splitlines() == [
        "The title",
        "",
        "## Heading",
        "",
        "One & two € three",
        "four",
        "",
        "a link (https://h.test/x?a=1&b=2), top, js, https://e.test/ bad pic (https://h.test/d/y)",
        "",
        "- a",
        "- b",
        "",
        "k | v",
        "1 | 2",
        "",
        "def f():",
        "    return 1",
        "",
        "# end",
        "",
        "tail not closed (https://h.test/open)",
    ]


@pytest.mark.parametrize(
    "html", ["<" * 3000, "<![" * 3000, "<!--" * 3000, "<a href=" * 3000, "<script>", "</", "&#"]
)
def test_a_page_that_is_hardly_one(html: str) -> None:
    page.text(html, "https://h.test/")


# What the model is told


def test_declarations() -> None:
    from jsonschema import Draft202012Validator

    by_name = {name: d["parameters"] for name, d in declarations().items()}
    assert list(by_name) == [
        "read_file",
        "list_dir",
        "search_files",
        "write_file",
        "run_command",
        "http_get",
        "current_time",
        "calculate",
    ]
    for declaration in declarations().values():
        assert set(declaration) == {"name", "description", "parameters"}
    for parameters in by_name.values():
        Draft202012Validator.check_schema(parameters)
        assert parameters["additionalProperties"] is False
        assert all(p["description"] for p in parameters["properties"].values())


def test_starting_is_cheap(root: Path) -> None:
    heavy = {"http.client", "ssl", "socket", "asyncio", "jsonschema", "torch", "email"}
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from glmchat.tools.builtin import declarations, check;"
        "from glmchat.tools.builtin import files, search, arithmetic, clock;"
        "check('http_get', {'url': 'http://x.test'}, []); print(*sys.modules)"
    )
    found = subprocess.run(
        [sys.executable, "-I", "-c", code, str(MAIN.parents[3])], capture_output=True, text=True, check=True
    )
    assert heavy.isdisjoint(found.stdout.split())
