"""Checkpoints from the hub: its own library, against a hub on this machine."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.hub import COMMIT, Hub, serve

FETCH = """if True:
    import json, sys
    from glmchat.errors import GlmChatError
    from glmchat.glm.checkpoints import choose_template, resolve, with_weights

    name, options, seen = sys.argv[1], json.loads(sys.argv[2]), []
    try:
        checkpoint = resolve(name, **options)
        choose_template(checkpoint)
        checkpoint = with_weights(checkpoint, lambda done, total: seen.append([done, total]))
        told = {"tensors": sum(map(len, checkpoint.shards)), "folder": checkpoint.folder.name}
    except GlmChatError as e:
        told = {"error": str(e)}
    print(json.dumps(told | {"seen": seen[-1:]}))
"""
Fetch = Callable[..., dict[str, Any]]


@pytest.fixture
def hub(tiny_glm: Path, tmp_path: Path) -> Iterator[Hub]:
    folder = Path(shutil.copytree(tiny_glm, tmp_path / "served"))
    with serve(folder) as hub:
        yield hub


@pytest.fixture
def fetch(hub: Hub, tmp_path: Path) -> Fetch:
    """What a program with a cache of its own tells that fetches a checkpoint with its weights."""

    def run(name: str = "org/name", **options: Any) -> dict[str, Any]:
        told = subprocess.run(
            [sys.executable, "-c", FETCH, name, json.dumps(options)],
            env={**os.environ, **hub.environment(tmp_path / "cache")},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert not told.stderr, told.stderr
        value: dict[str, Any] = json.loads(told.stdout)
        assert "\n" not in value.get("error", "")
        return value

    return run


def test_a_checkpoint_is_downloaded_once(fetch: Fetch, hub: Hub) -> None:
    first = fetch()
    size = (hub.folder / "model.safetensors").stat().st_size
    assert first["tensors"] > 10
    assert first["folder"] == COMMIT
    assert first["seen"] == [[size, size]]
    hub.asked.clear()
    assert fetch() == {**first, "seen": []}
    assert len(hub.asked) == 2, "the hub is only asked what is newest"
    assert not hub.weights_asked()


def test_code_comes_only_where_it_is_trusted(fetch: Fetch, hub: Hub, tmp_path: Path) -> None:
    (hub.folder / "own.py").write_text("raise SystemExit('this code must not run')")
    fetch()
    assert not any(line.endswith(".py") for line in hub.asked)
    fetch(with_code=True)
    assert len(list((tmp_path / "cache").rglob(f"{COMMIT}/own.py"))) == 1


def test_from_the_cache_without_a_hub(fetch: Fetch, hub: Hub) -> None:
    first = fetch()
    hub.asked.clear()
    assert fetch(offline=True)["tensors"] == first["tensors"]
    assert hub.asked == []
    hub.port = 1  # where nobody listens
    assert fetch()["tensors"] == first["tensors"]


def test_a_silent_hub_is_not_waited_for(fetch: Fetch, hub: Hub) -> None:
    """As behind a firewall that drops what is sent; the library itself would wait for ever."""
    first = fetch()
    hub.silent.set()
    began = time.monotonic()
    assert fetch()["tensors"] == first["tensors"]
    assert time.monotonic() - began < 20


def test_a_silent_hub_and_nothing_in_the_cache(fetch: Fetch, hub: Hub) -> None:
    hub.silent.set()
    assert "is not in the local cache and the hub cannot be reached" in fetch()["error"]


def test_a_newer_commit_is_fetched(fetch: Fetch, hub: Hub) -> None:
    fetch()
    hub.commit = "f" * 40
    config = hub.folder / "config.json"
    config.write_text(config.read_text().replace("}", ', "note": 1}', 1) + " ")
    assert fetch()["folder"] == "f" * 40


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("org/other", {}, "org/other was not found on the hub, or it is private"),
        ("org/name", {"revision": "v9"}, "org/name has no revision v9; check --revision"),
        ("org/name", {"offline": True}, "is not wholly in the local cache and --offline forbids"),
    ],
)
def test_what_is_not_there(fetch: Fetch, name: str, options: dict[str, Any], says: str) -> None:
    assert says in fetch(name, **options)["error"]


def test_terms_to_accept(fetch: Fetch, hub: Hub) -> None:
    hub.gated = True
    assert "org/name is gated: accept its terms at https://huggingface.co/org/name" in fetch()["error"]


def test_what_came_of_a_broken_download_is_kept(fetch: Fetch, hub: Hub) -> None:
    size = (hub.folder / "model.safetensors").stat().st_size
    fetch_small = hub.cut_after = size // 3
    assert fetch_small > 100_000, "small files come whole"
    told = fetch()
    if "error" in told:  # the library tries again a few times by itself
        assert "download of org/name failed" in told["error"]
        hub.cut_after = None
        told = fetch()
    assert told["tensors"] > 10


def test_unfit_ones_are_refused_before_their_weights_come(fetch: Fetch, hub: Hub) -> None:
    config = hub.folder / "config.json"
    value = json.loads(config.read_text())
    config.write_text(json.dumps(value | {"_name_or_path": "zai-org/GLM-4.5-Air-Base"}))
    assert "is a base checkpoint" in fetch()["error"]
    (hub.folder / "chat_template.jinja").unlink()
    config.write_text(json.dumps(value | {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}))
    hub.commit = "e" * 40
    assert "brings no chat template" in fetch()["error"]
    assert not hub.weights_asked()


def test_a_disk_that_is_too_small(fetch: Fetch, hub: Hub) -> None:
    index = {"metadata": {"total_size": 10**18}, "weight_map": {"lm_head.weight": "model.safetensors"}}
    (hub.folder / "model.safetensors.index.json").write_text(json.dumps(index))
    told = fetch()
    assert "org/name takes 1,000,000,000 GB of the disk" in told["error"]
    assert "set HF_HOME" in told["error"]
    assert not hub.weights_asked()
