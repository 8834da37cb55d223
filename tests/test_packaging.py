"""What an installation holds: the wheel and the source distribution are built for real, without a network."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


KERNELS = {f"glmchat/engine/kernels/{build}.so" for build in ("avx2", "avx512", "avx512_bf16", "amx_tile")}
COMPILES = platform.system() == "Linux" and platform.machine() == "x86_64" and bool(shutil.which("gcc"))


def build(kind: str, folder: Path, root: Path = ROOT, **environment: str) -> Path:
    pytest.importorskip("hatchling", reason="hatchling builds the package; install the dev extra")
    command = [sys.executable, "-m", "hatchling", "build", "--target", kind, "--directory", str(folder)]
    env = {**os.environ, **environment}
    done = subprocess.run(command, cwd=root, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (built,) = folder.iterdir()
    return built


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel's content in a folder of its own, far from the repository."""
    folder = tmp_path_factory.mktemp("unpacked")
    with zipfile.ZipFile(build("wheel", tmp_path_factory.mktemp("wheel"))) as wheel:
        wheel.extractall(folder)
    return folder


def files(folder: Path, pattern: str = "**/*") -> dict[str, bytes]:
    found = (p for p in folder.glob(pattern) if p.is_file() and "__pycache__" not in p.parts)
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in found}


def run_unpacked(unpacked: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "PYTHONPATH": str(unpacked),
        "HOME": str(folder),
        "XDG_CONFIG_HOME": str(folder),
    }
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def test_wheel_holds_the_whole_package_and_nothing_else(unpacked: Path) -> None:
    package = {f"glmchat/{name}": data for name, data in files(ROOT / "glmchat").items()}
    templates = {f"glmchat/templates/{name}": data for name, data in files(ROOT / "templates").items()}
    assert {"glmchat/templates/glm-4.5.jinja", "glmchat/templates/glm-4.7.jinja"} <= templates.keys()
    assert {
        f"glmchat/demo/{n}" for n in ("config.json", "model.safetensors", "tokenizer.json")
    } <= package.keys()
    inside = {name: data for name, data in files(unpacked).items() if ".dist-info/" not in name}
    assert inside == package | templates


@pytest.mark.skipif(not COMPILES, reason="no gcc for x86-64 on Linux")
def test_wheel_holds_the_compiled_kernels(unpacked: Path) -> None:
    assert files(unpacked).keys() >= KERNELS
    (info,) = unpacked.glob("*.dist-info")
    (tag,) = re.findall("^Tag: (.*)$", (info / "WHEEL").read_text(), re.MULTILINE)
    assert tag.startswith("py3-none-linux")  # any Python, not any machine


def test_wheel_is_for_any_machine_without_a_compiler(tmp_path: Path) -> None:
    with tarfile.open(build("sdist", tmp_path / "sdist")) as archive:
        archive.extractall(tmp_path, filter="data")
    (root,) = tmp_path.glob("glmchat-*")
    wheel = build("wheel", tmp_path / "wheel", root, CC=f"{tmp_path}/no-compiler")
    assert wheel.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        assert not KERNELS & set(archive.namelist())


def test_wheel_names_its_command_and_licence(unpacked: Path) -> None:
    (info,) = unpacked.glob("*.dist-info")
    assert "glmchat = glmchat.cli:main" in (info / "entry_points.txt").read_text()
    assert (info / "licenses" / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()


def test_bundled_checkpoint_is_small() -> None:
    assert sum(map(len, files(ROOT / "glmchat" / "demo").values())) <= 20_000_000


def test_unpacked_wheel_renders_with_its_own_templates(unpacked: Path, tmp_path: Path) -> None:
    code = (
        "import glmchat; print(glmchat.__file__);"
        "print(glmchat.render_prompt([{'role': 'user', 'content': 'hi'}], template='glm-4.7'))"
    )
    done = run_unpacked(unpacked, tmp_path, "-c", code)
    where, prompt = done.stdout.split("\n", 1)
    assert Path(where).is_relative_to(unpacked), done.stderr
    assert prompt.strip() == "[gMASK]<sop><|user|>hi<|assistant|><think>"


def test_unpacked_wheel_answers_with_its_own_checkpoint(unpacked: Path, tmp_path: Path) -> None:
    done = run_unpacked(unpacked, tmp_path, "-m", "glmchat", "--", "hi")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_sdist_holds_what_the_wheel_is_built_from(tmp_path: Path) -> None:
    with tarfile.open(build("sdist", tmp_path)) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames()}
    needed = {f"glmchat/{name}" for name in files(ROOT / "glmchat")} - KERNELS
    needed |= {f"templates/{name}" for name in files(ROOT / "templates")}
    needed |= {"pyproject.toml", "README.md", "LICENSE", "constraints.txt", "hatch_build.py"}
    assert needed | {"Makefile", "scripts/venv.sh", ".ci/run"} <= names  # what the README calls
    assert not any(".venv" in name or "__pycache__" in name or name in KERNELS for name in names)


@pytest.mark.parametrize("version", ["3.10", "3.11", "3.13"])
def test_constraints_pin_every_dependency_within_its_range(version: str) -> None:
    environment = {"python_version": version, "extra": ""}

    def applies(requirement: Requirement) -> bool:
        return requirement.marker is None or requirement.marker.evaluate(environment)

    lines = [
        Requirement(line) for line in (ROOT / "constraints.txt").read_text().splitlines() if line[:1] != "#"
    ]
    pins: dict[str, str] = {}
    for pin in filter(applies, lines):
        assert pin.name not in pins, f"{pin.name} is pinned twice for Python {version}"
        pins[pin.name] = str(pin.specifier).removeprefix("==")
    wanted = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["dev"]]
    for requirement in filter(applies, map(Requirement, wanted)):
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        assert requirement.specifier.contains(pins[name]), name
