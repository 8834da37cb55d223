"""Which of a model's weights are read for one token. Works on a model that it is given, without torch."""

from __future__ import annotations

from collections import Counter
from typing import Any


def active_bytes(model: Any) -> Counter[str]:
    """By device, the bytes of weights that a forward of one token reads.

    Not the table of embeddings, of which it reads one row, unless it is lm_head as well; and of the routed
    experts only as many as a token is sent to.
    """
    config = model.config.get_text_config()
    experts = next((n for name in _EXPERTS if (n := getattr(config, name, None))), 0)
    used = getattr(config, "num_experts_per_tok", None) or experts
    table, head = model.get_input_embeddings(), model.get_output_embeddings()
    skipped = None if head is None or head.weight is table.weight else table.weight
    out: Counter[str] = Counter()
    for name, weight in model.named_parameters():
        if weight is skipped:
            continue
        routed = experts and ".experts." in name
        out[str(weight.device)] += weight.nbytes * used // experts if routed else weight.nbytes
    return out


_EXPERTS = ("n_routed_experts", "num_local_experts", "num_experts")
"""What the configurations of one model or another call their number."""
