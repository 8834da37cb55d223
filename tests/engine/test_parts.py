"""The engine's small parts: detokenizer, outbox, what is to do, prefix cache, which kernels are for a CPU."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import DynamicCache, LlamaConfig, MistralConfig

from glmchat.engine import kv, native
from glmchat.engine.cache import MOST_BRANCHES, Branch, PrefixCache, is_croppable
from glmchat.engine.detokenize import Detokenizer
from glmchat.engine.kv import growing, use, whole
from glmchat.engine.outbox import INTERVAL_S, Outbox
from glmchat.engine.progress import allot
from glmchat.engine.todo import Todo
from glmchat.events import AnswerDelta, PrefillProgress, ThinkingDelta
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


class TestTodo:
    def test_jobs_in_order_then_the_newest_hint(self) -> None:
        todo: Todo[str, str] = Todo()
        for job in ("first", "second"):
            todo.put(job)
        todo.hint("old")
        todo.hint("new")
        assert todo.waits()
        assert todo.presses(but="second".__eq__)
        assert not todo.presses(but="first".__eq__)
        assert [todo.take(), todo.take()] == ["first", "second"]
        assert todo.waits()
        assert not todo.presses(but="new".__ne__)
        assert todo.take() == "new"
        assert not todo.waits()
        with pytest.raises(TimeoutError):
            todo.take(0)

    def test_a_job_makes_a_hint_old(self) -> None:
        todo: Todo[str, str] = Todo()
        todo.hint("for the job before")
        todo.put("job")
        assert todo.take() == "job"
        with pytest.raises(TimeoutError):
            todo.take(0.01)

    @pytest.mark.parametrize("give", [Todo.put, Todo.hint])
    def test_who_waits_is_woken(self, give: Any) -> None:
        todo: Todo[str, str] = Todo()
        threading.Timer(0.05, give, (todo, "x")).start()
        assert todo.take(10) == "x"


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

    def test_the_first_text_of_a_kind_travels_at_once(self) -> None:
        outbox, got = Outbox(), []
        reader = threading.Thread(target=lambda: got.extend(outbox))
        reader.start()
        for event in (PrefillProgress(1, 1), ThinkingDelta("a"), AnswerDelta("b")):
            outbox.put(event)
        deadline = time.perf_counter() + 10
        while len(got) < 3 and time.perf_counter() < deadline:
            time.sleep(0.001)
        assert got == [PrefillProgress(1, 1), ThinkingDelta("a"), AnswerDelta("b")], "nothing came after"
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
        return growing(DynamicCache(config=LlamaConfig(num_hidden_layers=2)))

    def fill(self, branch: Branch, ids: list[int]) -> None:
        """As a forward does; each token is its own key and value."""
        import torch

        states = torch.tensor(ids, dtype=torch.float)[None, None, :, None].expand(-1, -1, -1, 4)
        for layer in range(2):
            branch.cache.update(states, states, layer)
        branch.ids += ids

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
        prefix = PrefixCache(self.new_cache, 0)
        branch = prefix.begin([1, 2, 3, 4])
        assert branch.ids == []
        self.fill(branch, [1, 2, 3, 4])
        prefix.keep(branch)
        branch = prefix.begin(prompt)
        assert branch.ids == prompt[:common]
        assert all(layer.get_seq_length() == common for layer in branch.cache.layers)

    def test_nothing_is_kept_unless_the_turn_says_so(self) -> None:
        prefix = PrefixCache(self.new_cache, 0)
        self.fill(branch := prefix.begin([1, 2, 3]), [1, 2, 3])
        prefix.keep(branch)
        prefix.begin([1, 2, 3, 4])  # and then a fault
        assert prefix.begin([1, 2, 3, 4]).ids == []

    def held(self, prefix: PrefixCache, *conversations: list[int]) -> None:
        for ids in conversations:
            branch = prefix.begin(ids)
            self.fill(branch, ids[len(branch.ids) :])
            prefix.keep(branch)

    def test_conversations_take_turns(self) -> None:
        prefix = PrefixCache(self.new_cache, 10**6)
        a, b = [1, 2, 3, 4, 5, 6], [1, 2, 7, 8, 9, 10]
        self.held(prefix, a, b)
        for ids in (a, b, a):
            branch = prefix.begin(ids)
            assert branch.ids == ids[:-1], "the other one did not cost it anything"
            first = [int(layer.keys[0, 0, at, 0]) for layer in branch.cache.layers for at in range(5)]
            assert first == ids[:-1] * 2, "and did not write into it"
            self.fill(branch, ids[-1:])
            prefix.keep(branch)

    def test_a_prompt_read_to_its_end_stays_whole_where_its_logits_are_known(self) -> None:
        prompt = [1, 2, 3, 4]

        def begun(last: object, asked: list[int] = prompt) -> Branch:
            prefix = PrefixCache(self.new_cache, 10**6)
            self.held(prefix, prompt)
            (branch,) = prefix._branches
            branch.last = last  # type: ignore[assignment]
            return prefix.begin(asked)

        assert begun(None).ids == [1, 2, 3]
        branch = begun(("logits", "state"))
        assert (branch.ids, branch.last) == (prompt, ("logits", "state"))
        assert all(layer.get_seq_length() == 4 for layer in branch.cache.layers)
        for other in ([1, 2, 3], [1, 2, 3, 9]):
            branch = begun(("logits", "state"), other)
            assert branch.last is None
            assert branch.ids == [1, 2, 3][: len(other) - 1]

    def test_a_branch_of_the_same_conversation_goes_on_in_place(self) -> None:
        prefix = PrefixCache(self.new_cache, 10**6)
        self.held(prefix, [1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 7, 8])
        assert prefix.begin([1, 2, 3, 4, 5, 6]).ids == [1, 2, 3, 4]

    def test_of_two_that_share_as_much_the_shorter_goes_on(self) -> None:
        prefix = PrefixCache(self.new_cache, 10**6)
        shared, more = list(range(600)), list(range(1000, 1400))
        self.held(prefix, [*shared, *more])
        self.fill(branch := Branch(self.new_cache()), shared)
        branch.last = (torch.zeros(1, 9), None)
        prefix.keep(branch)
        assert prefix.begin([*shared, 7]) is branch
        assert len(prefix.begin([*shared, *more, 7]).ids) == 1000, "of the other nothing was cut off"

    def test_a_turn_that_ended_before_it_began_pushes_nothing_out(self) -> None:
        prefix = PrefixCache(self.new_cache, 10**6)
        self.held(prefix, [1, 2, *range(100, 200)])
        for number in range(2 * MOST_BRANCHES):
            prefix.keep(prefix.begin([1, 2, *range(200 + number, 300)]))
            prefix.keep(prefix.begin([number + 1000, 2]))
        assert len(prefix.begin([1, 2, *range(100, 200), 7]).ids) == 102

    def test_room_to_grow_counts(self) -> None:
        prefix = PrefixCache(self.new_cache, 0)
        self.held(prefix, list(range(3000)), [0, 1, 2, 3, 9])
        (branch,) = prefix._branches
        assert branch.ids == [0, 1, 2, 3, 9]
        assert branch.nbytes >= 3000 * 2 * 2 * 4 * 4, "it still holds what it was cut back from"

    def test_the_oldest_go_when_memory_is_short(self) -> None:
        one = [[n] * 10 for n in range(4)]
        prefix = PrefixCache(self.new_cache, 10**6)
        self.held(prefix, one[0])
        size = prefix.begin(one[0]).nbytes
        prefix = PrefixCache(self.new_cache, 2 * size)
        self.held(prefix, *one)
        assert [len(prefix.begin(ids).ids) for ids in one] == [0, 0, 9, 9]
        prefix = PrefixCache(self.new_cache, 0)
        self.held(prefix, *one)
        assert [len(prefix.begin(ids).ids) for ids in one] == [0, 0, 0, 9], "the newest always stays"

    def test_cutting_and_going_on_equals_never_having_been_there(self) -> None:
        import torch

        grown, plain = self.new_cache(), DynamicCache()
        torch.manual_seed(0)
        for count in (3, 300, 1, 1, 500, 1):
            keys, values = torch.rand(1, 1, count, 4), torch.rand(1, 1, count, 4)
            ours = grown.update(keys, values, 0)
            theirs = plain.update(keys, values, 0)
            assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
            for cache in (grown, plain):
                cache.crop(-1)
        assert grown.get_seq_length() == plain.get_seq_length()

    def test_what_was_never_written_is_not_nan(self) -> None:
        """A compiled step multiplies it by attention weights of 0."""
        import torch

        cache = self.new_cache()
        for layer in (0, 1):
            cache.update(torch.rand(1, 2, 70, 4), torch.rand(1, 2, 70, 4), layer)
        for length, room in ((256, 256), (300, 512)):  # 300 * 1.5, in whole 128s
            for buffers in whole(cache, length):
                for tensor in buffers:
                    assert tensor.shape == (1, 2, room, 4)
                    assert not tensor[..., 70:, :].any()
            assert cache.get_seq_length() == 70
        use(cache, 72)
        assert cache.layers[1].values.data_ptr() == whole(cache, 72)[1][1].data_ptr()
        assert cache.get_seq_length() == 72

    def test_all_layers_have_the_same_room_after_a_stopped_forward(self) -> None:
        """A compiled step has one mask for all of them."""
        branch = Branch(self.new_cache(), [1] * 250)
        for layer in (0, 1):
            held = torch.rand(1, 2, 250, 4)
            branch.cache.update(held, held, layer)
        branch.cache.update(torch.rand(1, 2, 20, 4), torch.rand(1, 2, 20, 4), 0)
        branch.mend()
        for length in (250, 260, 2000):
            rooms = {tensor.shape[2] for buffers in whole(branch.cache, length) for tensor in buffers}
            assert len(rooms) == 1
            assert rooms.pop() >= length
            assert all(torch.equal(layer.keys, layer.values) for layer in branch.cache.layers)
            assert [layer.get_seq_length() for layer in branch.cache.layers] == [250, 250]

    def test_no_memory_for_the_values_leaves_the_keys_as_they_were(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        branch = Branch(self.new_cache())
        self.fill(branch, list(range(256)))
        zeros, calls = kv._zeros, iter(range(9))

        def short(*given: Any) -> Any:
            if next(calls) == 1:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return zeros(*given)

        more = torch.rand(1, 1, 100, 4)
        with monkeypatch.context() as patch:
            patch.setattr(kv, "_zeros", short)
            with pytest.raises(torch.OutOfMemoryError):
                branch.cache.update(more, more, 0)
        branch.mend()
        keys, values = branch.cache.update(more[:, :, :50], more[:, :, :50], 0)
        assert torch.equal(keys, values)
        assert keys[0, 0, :, 0].tolist() == [*range(256), *more[0, 0, :50, 0].tolist()]

    def test_keys_and_values_side_by_side_are_one_vector_without_copying(self) -> None:
        branch = Branch(growing(DynamicCache(config=LlamaConfig(num_hidden_layers=1)), side_by_side=True))
        keys, values = torch.rand(1, 1, 300, 4), torch.rand(1, 1, 300, 2)
        for begin, end in ((0, 200), (200, 299), (299, 300)):  # into its first room, into more, and within
            held = branch.cache.update(keys[:, :, begin:end], values[:, :, begin:end], 0)
            assert torch.equal(kv.both(*held), torch.cat([keys, values], dim=-1)[:, :, :end])
            assert kv.both(*held).data_ptr() == held[0].data_ptr()
        apart = growing(DynamicCache(config=LlamaConfig(num_hidden_layers=1))).update(keys, values, 0)
        assert torch.equal(kv.both(*apart), torch.cat([keys, values], dim=-1))

    def test_sliding_windows_are_not_reused(self) -> None:
        from transformers import MistralConfig

        config = MistralConfig(sliding_window=2, num_hidden_layers=2)
        prefix = PrefixCache(lambda: growing(DynamicCache(config=config)), 10**6)
        self.held(prefix, [1, 2, 3])
        assert prefix.begin([1, 2, 3, 4]).ids == []


def test_bytes_of_the_weights_are_allotted_to_what_they_become() -> None:
    shards = [
        {"embed.weight": 100, "layers.0.experts.0.up": 10, "layers.0.experts.1.up": 10},
        {"layers.0.experts.0.down": 8, "layers.0.experts.1.down": 8, "layers.9.extra": 50, "head.weight": 4},
    ]
    names = ["embed.weight", "layers.0.experts.up_all", "layers.0.experts.down_all", "head.weight", "made_up"]
    assert allot(names, shards) == [(100, 1), (18, 2), (18, 2), (4, 2), (0, 0)]
    assert allot(names, []) == [(0, 0)] * 5


def test_a_cache_that_cannot_be_cut_survives_a_stopped_forward() -> None:
    """Beyond its window a layer refuses even to be cut by nothing."""
    config = MistralConfig(num_hidden_layers=2, sliding_window=4)
    branch = Branch(DynamicCache(config=config), [1, 2, 3])
    keys = torch.zeros(1, 8, 6, 16)
    branch.cache.update(keys, keys, 0)
    with pytest.raises(RuntimeError):
        branch.cache.layers[0].crop(0)
    branch.mend()
    assert not is_croppable(branch.cache)


AMX, BF16, AVX512, AVX2 = native.INPUTS
find_build = native.build.__wrapped__


@pytest.mark.parametrize(
    ("features", "permitted", "vendor", "expected"),
    [
        ([AMX, BF16, AVX512, AVX2], True, "GenuineIntel", AMX),
        ([AMX, BF16, AVX512, AVX2], False, "GenuineIntel", AVX512),
        ([BF16, AVX512, AVX2], True, "GenuineIntel", AVX512),
        ([BF16, AVX512, AVX2], True, "AuthenticAMD", BF16),
        ([AVX512, AVX2], True, "GenuineIntel", AVX512),
        ([AVX2], True, "AuthenticAMD", AVX2),
        ([], True, "GenuineIntel", None),
    ],
)
def test_which_kernels_are_for_a_cpu(
    features: list[str], permitted: bool, vendor: str, expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Intel's multiply BF16 at half the speed of FP32, but by AMX, for which Linux is asked."""
    monkeypatch.setattr(native, "cpu_has", features.__contains__)
    monkeypatch.setattr(native, "_is_intel", lambda: vendor == "GenuineIntel")
    monkeypatch.setattr(native, "onednn_multiplies", lambda: AVX512 in features)
    monkeypatch.setattr(torch.cpu, "_init_amx", lambda: permitted, raising=False)
    assert find_build() == expected
