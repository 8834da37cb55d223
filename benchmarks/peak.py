"""The memory that one load takes, in a process of its own: `python -m benchmarks.peak MODEL`.

Writes JSON: bytes of the `weights`, and the `peak` of the resident set above what the libraries took before.
Every weight is read once: those that lie in a mapped file are not in memory before.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from glmchat.engine.local import open_local
from glmchat.engine.memory import LoadOptions, peak_resident


def main(model: str) -> None:
    # What loading any model of this kind takes, before there are weights.
    import torch  # noqa: F401
    import transformers.models.glm4_moe.modeling_glm4_moe  # noqa: F401

    base = peak_resident()
    with open_local(model, LoadOptions(device_map="cpu")) as engine:
        weights = engine.lend(lambda decoder, *_: _read(decoder.loaded))
        print(json.dumps({"weights": weights, "peak": peak_resident() - base}))


def _read(loaded: Any) -> int:
    """Read all weights; their bytes."""
    for weight in loaded.weights():
        if not weight.is_mkldnn:  # those are copies, not in a file
            weight.sum()
    return int(loaded.weights_bytes)


if __name__ == "__main__":
    main(sys.argv[1])
