"""For tests of the kernels in C: each build that runs on this CPU. What was compiled must load."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from glmchat.engine import native


@pytest.fixture(params=native.INPUTS)
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The build that is in use meanwhile."""
    build: str = request.param
    mine = native.build()  # which asks for what it may use
    if not native.cpu_has(build) or (build == native.AMX and mine != build):
        pytest.skip(f"this CPU has no {build}, or Linux does not let us use it")
    if not native.library(build).is_file():
        pytest.skip(
            f"the kernels for {build} were not compiled when glmchat was installed: no gcc, or an old one"
        )
    monkeypatch.setattr(native, "build", lambda: build)
    for cached in (native._kernels, native.attends):
        cached.cache_clear()
    yield build
    for cached in (native._kernels, native.attends):
        cached.cache_clear()
