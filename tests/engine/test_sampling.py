"""Sampling: the same distribution that transformers' own warpers give."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from glmchat.engine.base import GenerationOptions
from glmchat.engine.sampling import Sampler
from glmchat.errors import UsageError
from glmchat.glm.checkpoints import SamplingDefaults

DRAWS = 20_000


def frequencies(sampler: Sampler, logits: torch.Tensor, history: torch.Tensor | None = None) -> torch.Tensor:
    chosen = sampler(logits.expand(DRAWS, -1), history)
    return torch.bincount(chosen, minlength=logits.shape[-1]) / DRAWS


def make(defaults: SamplingDefaults | None = None, **options: Any) -> Sampler:
    return Sampler(
        defaults or SamplingDefaults(),
        GenerationOptions(**options),
        lambda device: torch.Generator(device).manual_seed(0),
    )


@pytest.mark.parametrize("vocabulary", [40, 3000])
@pytest.mark.parametrize(
    ("options", "warpers"),
    [
        ({"temperature": 0.7}, [TemperatureLogitsWarper(0.7)]),
        ({"top_k": 5}, [TopKLogitsWarper(5)]),
        ({"top_p": 0.6}, [TopPLogitsWarper(0.6)]),
        ({"top_p": 0.9999}, [TopPLogitsWarper(0.9999)]),
        (
            {"temperature": 1.5, "top_k": 20, "top_p": 0.8},
            [TemperatureLogitsWarper(1.5), TopKLogitsWarper(20), TopPLogitsWarper(0.8)],
        ),
    ],
)
def test_distribution(vocabulary: int, options: dict[str, Any], warpers: list[Any]) -> None:
    torch.manual_seed(1)
    logits = torch.randn(1, vocabulary) * 2
    expected = LogitsProcessorList(warpers)(torch.zeros(1, 0, dtype=torch.long), logits).softmax(-1)[0]
    found = frequencies(make(**options), logits)
    assert not found[expected == 0].any()
    assert (found - expected).abs().max() < 0.02


def test_min_p_and_repetition_penalty_of_the_checkpoint() -> None:
    torch.manual_seed(2)
    logits, history = torch.randn(1, 40) * 2, torch.tensor([3, 3, 7, 9])
    defaults = SamplingDefaults(do_sample=True, min_p=0.2, repetition_penalty=1.5)
    warpers = LogitsProcessorList([RepetitionPenaltyLogitsProcessor(1.5), MinPLogitsWarper(0.2)])
    expected = warpers(history[None], logits).softmax(-1)[0]
    sampler = make(defaults)
    assert sampler.needs_history
    chosen = [int(sampler(logits, history)) for _ in range(3000)]
    found = torch.bincount(torch.tensor(chosen), minlength=40) / 3000
    assert not found[expected == 0].any()
    assert (found - expected).abs().max() < 0.05


@pytest.mark.parametrize(
    ("defaults", "options"),
    [
        (SamplingDefaults(), {"temperature": 1e-37}),
        (SamplingDefaults(), {"temperature": 1e-5}),
        (SamplingDefaults(do_sample=True, top_p=0.0), {}),
        (SamplingDefaults(do_sample=True, top_p=0.0, top_k=5), {}),
        (SamplingDefaults(do_sample=True, min_p=1.5), {}),
    ],
)
def test_the_likeliest_token_always_stays(defaults: SamplingDefaults, options: dict[str, Any]) -> None:
    torch.manual_seed(3)
    logits = torch.randn(1, 3000) * 30
    assert make(defaults, **options)(logits).tolist() == logits.argmax(-1).tolist()


@pytest.mark.parametrize(
    ("defaults", "options", "greedy"),
    [
        (SamplingDefaults(), {}, True),
        (SamplingDefaults(temperature=0.6), {}, True),
        (SamplingDefaults(do_sample=True), {}, False),
        (SamplingDefaults(do_sample=True, temperature=0.6), {"greedy": True}, True),
        (SamplingDefaults(do_sample=True), {"temperature": 0.0}, True),
        (SamplingDefaults(), {"temperature": 0.6}, False),
        (SamplingDefaults(), {"seed": 1}, True),
    ],
)
def test_who_decides_whether_to_sample(
    defaults: SamplingDefaults, options: dict[str, Any], greedy: bool
) -> None:
    sampler = make(defaults, **options)
    assert sampler.greedy is greedy
    if greedy:
        assert sampler(torch.tensor([[0.1, 2.0, 1.9]])).tolist() == [1]


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ({"temperature": float("nan")}, "temperature must be a number from 0 to 2, not nan"),
        ({"temperature": -1}, "temperature must be a number from 0 to 2, not -1"),
        ({"temperature": "hot"}, "temperature must be a number from 0 to 2, not 'hot'"),
        ({"top_p": 1.5}, "top_p must be a number from 0.001 to 1, not 1.5"),
        ({"top_k": 0}, "top_k must be a whole number from 1"),
        ({"max_tokens": -3}, "max_tokens must be a whole number from 1 to 10000000, not -3"),
        ({"seed": 2**64}, "seed must be a whole number from 0"),
        ({"greedy": "no"}, "greedy must be true or false, not 'no'"),
    ],
)
def test_options_that_no_answer_can_be_sampled_by(option: dict[str, Any], expected: str) -> None:
    with pytest.raises(UsageError, match=f"^GenerationOptions: {expected}") as caught:
        GenerationOptions(**option)
    assert "\n" not in str(caught.value)
    with pytest.raises(UsageError):
        replace(GenerationOptions(), **option)
