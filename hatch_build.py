"""Compiles glmchat/engine/kernels/*.c on the way into a wheel, or for an editable installation.

That needs gcc, and is for Linux on x86-64. Without it the package is complete too: torch's own kernel is used
then.
"""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

KERNELS = Path(__file__).with_name("glmchat") / "engine" / "kernels"
_AVX512 = [f"-mavx512{name}" for name in ("f", "bw", "dq", "vl")]
_BF16 = [*_AVX512, "-mavx512bf16"]
BUILDS = {
    "avx2": ["-mavx2", "-mfma"],
    "avx512": _AVX512,
    "avx512_bf16": _BF16,
    "amx_tile": [*_BF16, "-mamx-tile", "-mamx-bf16"],
}
"""Libraries, called after what a CPU must have, and how they are compiled."""
# -fopenmp, but not in the last step: the threads are those of the OpenMP that torch brings along.
COMPILE = ["-std=gnu11", "-O3", "-fPIC", "-fopenmp", "-Wall", "-Wextra"]


class Hook(BuildHookInterface[Any]):
    """For wheels, which then are for this kind of machine, and for any Python 3."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
            return
        for old in KERNELS.glob("*.so"):
            if old.stem not in BUILDS:
                old.unlink()
        for name, more in BUILDS.items():
            library = KERNELS / f"{name}.so"
            if problem := compile_library(library, more):
                library.unlink(missing_ok=True)
                self.app.display_warning(f"Without kernels for {name}, as {problem}")
        if any(KERNELS.glob("*.so")):
            build_data["pure_python"] = False
            build_data["tag"] = f"py3-none-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"


def compile_library(library: Path, more: list[str]) -> str:
    """Make it; '' or why it could not be made."""
    compiler = shlex.split(os.environ.get("CC", "")) or ["gcc"]
    with tempfile.TemporaryDirectory() as folder:
        made = {source: Path(folder) / f"{source.stem}.o" for source in sorted(KERNELS.glob("*.c"))}
        linked = library.with_suffix(".new")  # a running glmchat may use the old one
        for command in (
            *([*compiler, *COMPILE, *more, "-c", str(source), "-o", str(o)] for source, o in made.items()),
            [*compiler, "-shared", *map(str, made.values()), "-o", str(linked)],
        ):
            try:
                done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
            except (OSError, subprocess.TimeoutExpired) as e:
                return str(e)
            if done.returncode:
                return f"{shlex.join(command)} says: {done.stderr[-500:]}"
    linked.replace(library)
    return ""
