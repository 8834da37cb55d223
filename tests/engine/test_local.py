"""LocalEngine: it conforms, and does what is its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from glmchat.engine.local import LocalEngine, open_local

from .conformance import EngineConformance


@pytest.fixture(scope="module")
def shared(tiny_glm: Path) -> Iterator[LocalEngine]:
    with open_local(str(tiny_glm)) as engine:
        yield engine


class TestLocalEngine(EngineConformance):
    @pytest.fixture
    def engine(self, shared: LocalEngine) -> LocalEngine:
        return shared
