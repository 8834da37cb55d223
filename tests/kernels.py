"""For tests of the kernels in C: each build that runs on this CPU. What was compiled must load."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from glmchat.engine import native


@pytest.fixture(params=native.INPUTS)
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The build that is in use meanwhile."""
    build: str = request.param
    if not native.library(build).is_file() or not native.cpu_has(build):
        pytest.skip(f"the kernels for {build} were not compiled (no gcc), or are not for this CPU")
    native.build()  # asks for what it may use
    monkeypatch.setattr(native, "build", lambda: build)
    for cached in (native._kernels, native.attends):
        cached.cache_clear()
    yield build
    for cached in (native._kernels, native.attends):
        cached.cache_clear()
