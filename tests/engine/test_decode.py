"""The decode loop: whatever is reused, prefilled ahead or guessed, the answer is that of a fresh run."""

from __future__ import annotations

import itertools
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from glmchat.engine.base import GenerationOptions
from glmchat.engine.cache import Branch, common_prefix
from glmchat.engine.decode import CHUNK_AHEAD, Decoder
from glmchat.engine.draft import LONGEST_MTP, Lookup, Pace
from glmchat.engine.local import LocalEngine, open_local
from glmchat.engine.memory import LoadOptions
from glmchat.engine.sampling import Sampler
from glmchat.events import PromptReady, ThinkingDelta, TurnDone
from glmchat.glm.checkpoints import SamplingDefaults
from glmchat.messages import Conversation, Message
from tests import tiny

from .conformance import GREEDY, done

CONVERSATIONS = int(os.environ.get("GLMCHAT_TEST_CONVERSATIONS", "25"))
"""How many of the random ones; 500 take about ten minutes."""
QUESTIONS = [
    "What is 47 + 38?",
    "My name is Ada.",
    "What is my name?",
    "你好",
    "Show me a table.",
    "Write a list of three colours.",
    "What's the weather in Oslo?",
    "Who are you?",
    "What commands are there?",
]


@pytest.fixture(scope="module")
def guessing() -> Iterator[LocalEngine]:
    """The bundled checkpoint, which has an MTP layer, in FP32: in BF16 rounding decides between near ties."""
    with open_local("demo", LoadOptions(dtype="float32", device_map="cpu", speculate="mtp")) as engine:
        yield engine


@pytest.fixture(scope="module")
def plain() -> Iterator[LocalEngine]:
    """The same, token by token."""
    with open_local("demo", LoadOptions(dtype="float32", device_map="cpu", speculate="off")) as engine:
        yield engine


def forget(engine: LocalEngine) -> None:
    """Empty its KV cache, once what is read ahead there is over."""
    engine.lend(lambda decoder, *_: decoder.prefixes.drop())


class AnyPace(Pace):
    """Any number of guesses."""

    def __init__(self, rng: random.Random) -> None:
        super().__init__(LONGEST_MTP)
        self._rng = rng

    def choose(self) -> int:
        return self._rng.randint(0, LONGEST_MTP)


def a_conversation(seed: int, guessing: LocalEngine, plain: LocalEngine) -> int:
    """Questions, edits, retries, branches, interrupts, toggles and tools; returns how many tokens agreed."""
    rng = random.Random(seed)
    conversation = Conversation()
    agreed = 0
    if rng.random() < 0.3:
        conversation.append(Message("system", rng.choice(["Be brief.", "You are a pirate. " * 20])))
    thinking, tools = True, ()
    assert guessing._runner is not None
    guessing._runner._decoder.pace = AnyPace(rng)
    for _ in range(rng.randint(2, 5)):
        if rng.random() < 0.2:
            thinking = not thinking
        if rng.random() < 0.2:
            tools = () if tools else (tiny.WEATHER,)
        questions = [at for at, m in enumerate(conversation) if m.role == "user"]
        if questions and rng.random() < 0.3:  # retry, edit, or another branch
            conversation.truncate(rng.choice(questions))
        for call in conversation.unanswered:
            conversation.append(Message("tool", "12°C, rain", tool_call_id=call.id))
        conversation.append(Message("user", rng.choice(QUESTIONS)))
        options = GenerationOptions(greedy=True, enable_thinking=thinking, max_tokens=rng.randint(1, 40))
        for _ in range(rng.choice([0, 0, 1, 3])):  # as it is typed, now and then otherwise than it is sent
            typed = conversation.copy()
            question = typed.messages[-1].content
            typed.truncate(len(typed) - 1)
            typed.append(Message("user", question[: rng.randint(0, len(question))] + rng.choice(["", "x"])))
            guessing.prepare(typed, tools=tools, options=options)
            time.sleep(rng.random() * 0.05)
        if rng.random() < 0.3:  # and to its end
            guessing.prepare(conversation, tools=tools, options=options)
            time.sleep(rng.random() * 0.2)
        if rng.random() < 0.2:  # interrupted, and asked again
            cancel = threading.Event()
            for event in guessing.generate(conversation, tools=tools, options=options, cancel=cancel):
                if isinstance(event, ThinkingDelta):
                    cancel.set()
        ours = done(guessing.generate(conversation, tools=tools, options=options))
        forget(plain)
        theirs = done(plain.generate(conversation, tools=tools, options=options))
        assert ours.message == theirs.message, f"seed {seed}: {conversation.messages}"
        assert ours.usage.completion_tokens == theirs.usage.completion_tokens
        conversation.append(ours.message)
        agreed += ours.usage.completion_tokens
    return agreed


def test_random_conversations_equal_fresh_runs(guessing: LocalEngine, plain: LocalEngine) -> None:
    assert sum(a_conversation(seed, guessing, plain) for seed in range(CONVERSATIONS)) > CONVERSATIONS


def test_most_guesses_of_the_mtp_layer_are_right(guessing: LocalEngine) -> None:
    options = GenerationOptions(greedy=True)
    assert guessing._runner is not None
    guessing._runner._decoder.pace = AnyPace(random.Random(0))
    usage = [
        done(guessing.generate(Conversation([{"role": "user", "content": q}]), options=options)).usage
        for q in QUESTIONS
    ]
    guessed, right = sum(u.drafted_tokens for u in usage), sum(u.accepted_tokens for u in usage)
    assert guessed > 50
    assert right > guessed * 0.7


def test_what_is_cut_from_a_branch_is_cut_from_its_mtp_cache(guessing: LocalEngine) -> None:
    """Which in a branch that was copied from another does not begin where the trunk's does."""
    rng = random.Random(0)

    def some(count: int) -> list[int]:
        return [rng.randrange(200) for _ in range(count)]

    def read(decoder: Decoder, prompt: list[int]) -> Branch:
        decoding = decoder.begin(prompt)
        list(decoding.prefill(lambda: False))
        decoding.keep(settled=True)
        return decoding.branch

    def check(decoder: Decoder, *_: object) -> None:
        system = some(100)
        first, second = [*system, *some(300)], [*system, *some(400)]
        for prompt in (first, second):
            branch = read(decoder, prompt)
        assert branch.drafts_from == 100
        edited = [*second[:400], *some(50)]
        ours, fresh = (read(one, edited) for one in (decoder, Decoder(decoder.loaded)))
        assert ours is branch
        assert (fresh.drafts_from, fresh.drafts.get_seq_length()) == (0, 449)
        drafted = ours.drafts.layers[0].values  # which know no position, unlike keys
        assert torch.allclose(drafted, fresh.drafts.layers[0].values[:, :, 100:], atol=1e-4)

    forget(guessing)
    guessing.lend(check)
    forget(guessing)


def test_prompt_lookup_copies_what_stands_in_the_question(tiny_glm: Path) -> None:
    with open_local(str(tiny_glm), LoadOptions(speculate="lookup")) as engine:
        assert engine._runner is not None
        engine._runner._decoder.pace = AnyPace(random.Random(0))
        last = done(engine.generate(Conversation([{"role": "user", "content": "count"}]), options=GREEDY))
    assert tiny.LONG.strip() in last.message.content
    assert last.usage.accepted_tokens > 10


class TestReadingAhead:
    """The template drops the reasoning of a turn once another question follows."""

    def turns(self, engine: LocalEngine, *, ahead: bool, begun: str = "") -> TurnDone:
        forget(engine)
        conversation = Conversation([{"role": "user", "content": "What is 47 + 38?"}])
        first = done(engine.generate(conversation, options=GREEDY))
        assert first.message.reasoning_content
        conversation.append(first.message)
        conversation.append({"role": "user", "content": "Thanks!"})
        if ahead:
            typed = conversation.copy()
            typed.truncate(2)
            typed.append({"role": "user", "content": begun})
            engine.prepare(typed, options=GREEDY)
            time.sleep(0.5)
        return done(engine.generate(conversation, options=GREEDY))

    @pytest.mark.parametrize("name", ["plain", "guessing"])
    def test_the_next_turn_computes_its_own_message_alone(
        self, name: str, request: pytest.FixtureRequest
    ) -> None:
        engine = request.getfixturevalue(name)
        late, early = self.turns(engine, ahead=False), self.turns(engine, ahead=True)
        assert late.message == early.message
        new = [d.usage.prompt_tokens - d.usage.cached_tokens for d in (late, early)]
        assert new[0] > new[1]
        assert new[1] <= len("Thanks!") + 10

    @pytest.mark.parametrize("name", ["plain", "guessing"])
    def test_what_is_typed_already_is_read_as_well(self, name: str, request: pytest.FixtureRequest) -> None:
        engine = request.getfixturevalue(name)
        begun, other = (
            self.turns(engine, ahead=True, begun=text) for text in ("Thanks!", "Thank you so much")
        )
        assert begun.message == other.message
        assert begun.usage.cached_tokens > other.usage.cached_tokens
        assert begun.usage.cached_tokens == begun.usage.prompt_tokens

    @pytest.mark.parametrize("name", ["plain", "guessing"])
    def test_what_was_read_to_its_end_is_not_computed_again(
        self, name: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Nor is it after an answer that was stopped before its first token; by chance it is the same one."""
        engine = request.getfixturevalue(name)
        assert engine._runner is not None
        loaded, fed = engine._runner._loaded, []
        forward = loaded.forward
        monkeypatch.setattr(loaded, "forward", lambda ids, *more: fed.append(ids) or forward(ids, *more))
        conversation = Conversation([{"role": "user", "content": "Who are you?"}])
        options = GenerationOptions(temperature=1.5, seed=7, max_tokens=20)
        forget(engine)
        expected = done(engine.generate(conversation, options=options)).message
        forget(engine)
        engine.prepare(conversation, options=options)
        time.sleep(0.5)
        stopped = threading.Event()
        stopped.set()
        for cancel in (stopped, None):
            fed.clear()
            again = done(engine.generate(conversation, options=options, cancel=cancel))
            assert again.usage.cached_tokens == again.usage.prompt_tokens
            assert len(fed) < again.usage.completion_tokens
        assert again.message == expected

    def test_one_hint_after_the_other_comes_forward(self, plain: LocalEngine) -> None:
        """What is read takes longer than it lasts until more is typed."""
        forget(plain)
        text = "word " * 1500
        until = time.monotonic() + 60
        while (cached := self.cached(plain, text)) < 1000 and time.monotonic() < until:
            for length in range(20):
                plain.prepare(
                    Conversation([{"role": "user", "content": text + "x" * length}]), options=GREEDY
                )
                time.sleep(0.01)
        assert cached >= 1000

    def cached(self, engine: LocalEngine, text: str) -> int:
        """How many tokens of this question are in the cache; looked up between one reading and the next."""
        ids = engine.render(Conversation([{"role": "user", "content": text}]), options=GREEDY).ids
        branches = engine.lend(lambda decoder, *_: list(decoder.prefixes._branches))
        return max((common_prefix(ids, branch.ids) for branch in branches), default=0)

    def test_it_stops_for_a_turn(self, plain: LocalEngine) -> None:
        forget(plain)
        long = Conversation([{"role": "user", "content": "word " * 1500}])
        follow = long.copy()
        follow.append({"role": "assistant", "content": "Yes."})
        follow.append({"role": "user", "content": "x"})
        plain.prepare(follow, options=GREEDY)
        began = time.perf_counter()
        events = plain.generate(
            Conversation([{"role": "user", "content": "你好"}]), options=GenerationOptions(max_tokens=1)
        )
        list(events)
        soon = time.perf_counter() - began
        ready = next(e for e in plain.generate(long, options=GREEDY) if isinstance(e, PromptReady))
        assert ready.cached_tokens < ready.prompt_tokens - CHUNK_AHEAD, "it had not come to the end"
        assert soon < 5

    @pytest.mark.parametrize("asked", ["the same", "another", "stopped"])
    def test_it_goes_on_for_a_turn_that_asks_for_the_same(
        self, asked: str, guessing: LocalEngine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Whose question comes in the middle of the forward. It is not begun anew then, but for Ctrl-C."""
        assert guessing._runner is not None
        typed = Conversation([{"role": "user", "content": "What is 47 + 38?"}])
        sent = Conversation([{"role": "user", "content": "Who are you?"}]) if asked == "another" else typed
        stopped, ends, answers = threading.Event(), [], []
        if asked == "stopped":
            stopped.set()
        turn = threading.Thread(
            target=lambda: answers.append(done(guessing.generate(sent, options=GREEDY, cancel=stopped)))
        )
        loaded = guessing._runner._loaded
        forward = loaded.forward

        def interrupted(*args: Any) -> Any:
            if not ends:
                turn.start()
                until = time.monotonic() + 60
                while not guessing._todo._jobs and time.monotonic() < until:
                    time.sleep(0.001)
            ends.append("stopped")
            made = forward(*args)
            ends[-1] = "whole"
            return made

        forget(guessing)
        monkeypatch.setattr(loaded, "forward", interrupted)
        guessing.prepare(typed, options=GREEDY)
        while not ends:
            time.sleep(0.001)
        turn.join()
        usage = answers[0].usage
        assert ends[0] == ("whole" if asked == "the same" else "stopped")
        assert (usage.cached_tokens == usage.prompt_tokens) == (asked == "the same")

    def test_a_fault_costs_nobody_anything(self, plain: LocalEngine) -> None:
        plain.prepare(Conversation(), options=GREEDY)
        assert done(plain.generate(Conversation([{"role": "user", "content": "你好"}]), options=GREEDY))


class Always(Pace):
    """So many guesses in each step, whether they pay or not."""

    def __init__(self, count: int) -> None:
        super().__init__(count)
        self._count = count

    def choose(self) -> int:
        return self._count


@pytest.mark.parametrize("guesses", [1, 3])
def test_guessing_leaves_the_distribution_as_it_is(guessing: LocalEngine, guesses: int) -> None:
    """Chi-square of three sampled tokens, three candidates each, against what the model says of them."""
    assert guessing._runner is not None
    loaded = guessing._runner._loaded
    prompt = [*guessing.render(Conversation([{"role": "user", "content": "Who are you?"}])).ids, 11]
    options = GenerationOptions(temperature=2.0, top_k=3)
    with torch.inference_mode():
        expected: dict[tuple[int, ...], float] = {(): 1.0}
        for _ in range(3):
            expected = {
                (*ids, token): p * q for ids, p in expected.items() for token, q in nexts(loaded, prompt, ids)
            }
        decoder = Decoder(loaded)
        decoder.pace = Always(guesses)
        generator = torch.Generator().manual_seed(1)
        sample = Sampler(SamplingDefaults(), options, lambda _: generator)
        seen: Counter[tuple[int, ...]] = Counter()
        accepted, draws = 0, 500
        for _ in range(draws):
            decoding = decoder.begin(prompt)
            list(decoding.prefill(lambda: False))
            seen[tuple(itertools.islice(decoding.tokens(sample, 3 + guesses), 3))] += 1
            accepted += decoding.accepted
            decoding.keep()
    assert set(seen) <= set(expected)
    assert accepted > draws / 10
    # Sequences that are hardly ever expected count as one.
    likely = {ids for ids, p in expected.items() if p * draws >= 5}
    pairs = [(seen[ids], expected[ids] * draws) for ids in likely]
    rest = draws - sum(seen[ids] for ids in likely), draws * (1 - sum(expected[ids] for ids in likely))
    pairs += [rest] * (rest[1] >= 5)
    statistic = sum((observed - wanted) ** 2 / wanted for observed, wanted in pairs)
    freedom = len(pairs) - 1
    limit = torch.distributions.Chi2(freedom)
    assert freedom >= 6
    assert statistic < freedom + 4 * float(limit.variance) ** 0.5


def nexts(loaded: Any, prompt: list[int], ids: tuple[int, ...]) -> list[tuple[int, float]]:
    """The three likeliest tokens and what is drawn of each."""
    logits, _ = loaded.forward(loaded.ids([*prompt, *ids]), loaded.new_cache())
    values, tokens = (logits[0].float() / 2.0).topk(3)
    return list(zip(tokens.tolist(), values.softmax(-1).tolist(), strict=True))


def test_a_seed_gives_the_same_text_however_much_is_guessed(
    guessing: LocalEngine, plain: LocalEngine
) -> None:
    conversation = Conversation([{"role": "user", "content": "Who are you?"}])
    options = GenerationOptions(temperature=1.5, seed=7, max_tokens=60)
    for engine in (guessing, plain):
        forget(engine)
    ours, theirs = (done(e.generate(conversation, options=options)) for e in (guessing, plain))
    assert ours.message == theirs.message


class TestPace:
    def pace(self, right: float, plain_s: float, guess_s: float) -> list[int]:
        """What is chosen where guesses are so often right and cost so much."""
        rng = random.Random(0)
        pace = Pace(LONGEST_MTP)
        chosen = []
        for _ in range(400):
            count = pace.choose()
            came = next((n for n in range(count) if rng.random() > right), count)
            pace.observe(count, came, plain_s + count * guess_s)
            chosen.append(count)
        return chosen[200:]

    def test_more_where_it_pays(self) -> None:
        assert sum(self.pace(0.95, 1.0, 0.1)) / 200 > 3.5

    def test_few_where_it_hardly_does(self) -> None:
        assert 0.5 < sum(self.pace(0.5, 1.0, 0.3)) / 200 < 2

    def test_hardly_any_where_it_does_not(self) -> None:
        assert sum(self.pace(0.3, 1.0, 0.9)) / 200 < 0.1

    def test_what_was_slow_for_a_while_is_tried_again(self) -> None:
        """Though a guess that comes alone takes long, as all that came before it has to be read first."""
        pace, unread = Pace(LONGEST_MTP), 0
        counts = []
        for step in range(400):
            count = pace.choose()
            seconds = 1.0 + 0.3 * count + (0.1 * unread if count else 0.0)
            unread = 0 if count else unread + 1
            busy = 50 <= step < 70 and count
            pace.observe(count, count, 10 * seconds if busy else seconds)
            counts.append(count)
        assert sum(counts[100:110]) <= 2, "it looked as if no guess paid"
        assert sum(counts[-50:]) / 50 > 3

    def test_it_comes_back_when_guesses_are_right_again(self) -> None:
        pace = Pace(LONGEST_MTP)
        for _ in range(300):
            count = pace.choose()
            pace.observe(count, 0, 1.0 + 0.3 * count)
        for _ in range(3000):
            count = pace.choose()
            pace.observe(count, count, 1.0 + 0.3 * count)
        assert max(pace.choose() for _ in range(10)) >= 3


def test_lookup_guesses_what_followed_last_time() -> None:
    lookup = Lookup([1, 2, 3, 4, 5, 6, 7])
    assert lookup.draft(9, 4) == []
    lookup.read([9, 2, 3], None)
    assert lookup.draft(4, 2) == [5, 6]
    assert lookup.draft(4, 0) == []
    lookup.read([4, 8, 8, 8], None)
    assert lookup.draft(8, 5) == [], "these were not followed by anything yet"
    lookup.read([2, 3], None)
    assert lookup.draft(4, 9) == [8, 8, 8, 2, 3], "the newest place"


def test_lookup_knows_all_token_ids() -> None:
    """Some are no characters that may be written, or stand for two of UTF-16."""
    ids = [0, 55_296, 57_343, 65_536, 262_143]
    lookup = Lookup([*ids, *ids[:-2]])
    assert lookup.draft(ids[-2], 3) == [262_143, 0, 55_296]
