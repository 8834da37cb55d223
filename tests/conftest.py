"""Fixtures that several parts of the tests share. Checkpoints are made once a run."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from . import smollm2, tiny
from .kernels import kernels  # noqa: F401

# A runner in the background starts with SIGINT ignored, which every program under test would inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test reaches for the network


@pytest.fixture(scope="session")
def tiny_glm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny glm4_moe checkpoint that knows `tiny.DIALOGUES` by heart. Read only: copy it to change it."""
    return tiny.build(tmp_path_factory.mktemp("checkpoints") / "tiny-glm")


@pytest.fixture(scope="session")
def smollm2_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2-135M-Instruct in safetensors; skips where its package is not installed."""
    return smollm2.convert(tmp_path_factory.mktemp("checkpoints") / "SmolLM2-135M-Instruct")
