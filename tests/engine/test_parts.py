"""The engine's small parts: detokenizer, outbox, prefix cache."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glmchat.engine.cache import PrefixCache
from glmchat.engine.detokenize import Detokenizer
from glmchat.engine.outbox import INTERVAL_S, Outbox
from glmchat.engine.progress import allot
from glmchat.events import AnswerDelta, ThinkingDelta
from tests import tiny

TOKENIZER = tiny.make_tokenizer()


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_detokenizer_gives_back_any_text(text: str) -> None:
    detokenizer = Detokenizer(TOKENIZER)
    ids = TOKENIZER.encode(text).ids
    assert "".join(map(detokenizer.feed, ids)) == TOKENIZER.decode(ids, skip_special_tokens=False)


def test_detokenizer_waits_for_whole_characters_and_shows_control_tokens() -> None:
    detokenizer = Detokenizer(TOKENIZER)
    pieces = [detokenizer.feed(i) for i in TOKENIZER.encode("🎉<think>").ids]
    assert pieces == ["", "", "", "🎉", "<think>"]


class TestOutbox:
    def test_joins_neighbours_and_keeps_order(self) -> None:
        outbox = Outbox()
        outbox.put(ThinkingDelta("a"))  # travels at once
        for event in (ThinkingDelta("b"), ThinkingDelta("c"), AnswerDelta("d"), AnswerDelta("e")):
            outbox.put(event)
        outbox.close()
        assert "".join(e.text for e in outbox if isinstance(e, ThinkingDelta | AnswerDelta)) == "abcde"

    def test_first_event_and_slow_ones_travel_at_once(self) -> None:
        outbox, got = Outbox(), []
        reader = threading.Thread(target=lambda: got.extend(outbox))
        reader.start()
        for number in range(3):
            outbox.put(AnswerDelta(str(number)))
            time.sleep(INTERVAL_S * 2)
            assert got == [AnswerDelta(str(n)) for n in range(number + 1)]
        outbox.close()
        reader.join()

    def test_fault_comes_after_the_events(self) -> None:
        outbox = Outbox()
        outbox.put(AnswerDelta("a"))
        outbox.fail(ValueError("x"))
        events = iter(outbox)
        assert next(events) == AnswerDelta("a")
        with pytest.raises(ValueError, match="x"):
            next(events)


class TestPrefixCache:
    def new_cache(self) -> Any:
        from transformers import DynamicCache

        return DynamicCache()

    def fill(self, cache: Any, count: int) -> None:
        import torch

        for layer in range(2):
            cache.update(torch.zeros(1, 1, count, 4), torch.zeros(1, 1, count, 4), layer)

    @pytest.mark.parametrize(
        ("prompt", "common"),
        [
            ([1, 2, 3, 4, 5], 4),  # it goes on: all is of use
            ([1, 2, 3, 4], 3),  # the same prompt: the last token is computed anew
            ([1, 2, 9, 4], 2),
            ([1, 2], 1),
            ([1], 0),
            ([9, 2, 3, 4, 5], 0),
        ],
    )
    def test_cut_back_to_the_common_prefix(self, prompt: list[int], common: int) -> None:
        prefix = PrefixCache(self.new_cache)
        cache, held = prefix.begin([1, 2, 3, 4])
        assert held == 0
        self.fill(cache, 4)
        prefix.keep(cache, [1, 2, 3, 4])
        cache, held = prefix.begin(prompt)
        assert held == common == cache.get_seq_length()
        assert all(layer.get_seq_length() == common for layer in cache.layers)

    def test_nothing_is_kept_unless_the_turn_says_so(self) -> None:
        prefix = PrefixCache(self.new_cache)
        cache, _ = prefix.begin([1, 2, 3])
        self.fill(cache, 3)
        prefix.keep(cache, [1, 2, 3])
        prefix.begin([1, 2, 3, 4])  # and then a fault
        assert prefix.begin([1, 2, 3, 4])[1] == 0

    def test_sliding_windows_are_not_reused(self) -> None:
        from transformers import DynamicCache, MistralConfig

        prefix = PrefixCache(
            lambda: DynamicCache(config=MistralConfig(sliding_window=2, num_hidden_layers=2))
        )
        cache, _ = prefix.begin([1, 2, 3])
        self.fill(cache, 3)
        prefix.keep(cache, [1, 2, 3])
        assert prefix.begin([1, 2, 3, 4])[1] == 0


def test_bytes_of_the_weights_are_allotted_to_what_they_become() -> None:
    shards = [
        {"embed.weight": 100, "layers.0.experts.0.up": 10, "layers.0.experts.1.up": 10},
        {"layers.0.experts.0.down": 8, "layers.0.experts.1.down": 8, "layers.9.extra": 50, "head.weight": 4},
    ]
    names = ["embed.weight", "layers.0.experts.up_all", "layers.0.experts.down_all", "head.weight", "made_up"]
    assert allot(names, shards) == [(100, 1), (18, 2), (18, 2), (4, 2), (0, 0)]
    assert allot(names, []) == [(0, 0)] * 5
