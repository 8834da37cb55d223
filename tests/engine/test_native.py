"""Products in C: those of torch, for any shape, however many rows there are beside one."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from glmchat.engine import native

SHAPES = [
    (64, 32),
    (64, 64),
    (48, 4096),
    (1, 2),
    (63, 34),
    (65, 100),
    (200, 576),
    (1000, 1000),
    (2816, 128),
    (96, 2048),
]
"""Outputs and inputs."""

pytestmark = pytest.mark.usefixtures("kernels")


def random(*shape: int, seed: int = 0) -> Any:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


def packed(weight: Any, bias: Any = None) -> tuple[Any, native.Matrices]:
    """With the tensor, which must live on."""
    found = native.pack([weight], bias) if native.packs() else (weight, native.find(weight, bias))
    assert found is not None
    assert found[1] is not None
    return found


def inputs(least: int) -> int:
    """So many, or the next number for which there is a kernel."""
    return least + -least % native.INPUTS[str(native.build())]


def assert_product(ours: Any, x: Any, weight: Any, bias: Any = None) -> None:
    """No further from the exact one than by what the result is rounded by."""
    exact = x.double() @ weight.double().T
    if bias is not None:
        exact = exact + bias.double()
    slack = 1e-5 * (x.double().abs() @ weight.double().abs().T)  # of sums in FP32
    assert ours.dtype == torch.bfloat16
    assert bool(((ours.double() - exact).abs() <= 2**-8 * exact.abs() + slack + 1e-30).all())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("biased", [False, True])
def test_product_with_a_packed_matrix(shape: tuple[int, int], biased: bool) -> None:
    weight = random(shape[0], inputs(shape[1]))
    bias = random(shape[0], seed=1) if biased else None
    _keep, matrices = packed(weight, bias)
    for rows in (*range(1, 14), 16, 17, 20, 32, 100):
        x = random(rows, weight.shape[1], seed=rows)
        (product,) = native.multiply(x, matrices)
        assert_product(product, x, weight, bias)


@pytest.mark.parametrize("rows", [1, 2, 5, 70, 300])
@pytest.mark.parametrize(
    ("size", "inner", "experts", "each"), [(64, 32, 4, 2), (1100, 96, 9, 3), (32, 160, 30, 8)]
)
def test_experts(rows: int, size: int, inner: int, experts: int, each: int) -> None:
    """Rounded after each step, as in torch. In many rows some experts have none, and some many."""
    size, inner = inputs(size), inputs(inner)
    gates = [random(2 * inner, size, seed=n) / 8 for n in range(experts)]
    downs = [random(size, inner, seed=-1 - n) / 8 for n in range(experts)]
    kept = [[packed(weight) for weight in weights] for weights in (gates, downs)]
    generator = torch.Generator().manual_seed(rows)
    x, weights = random(rows, size, seed=9), torch.rand(rows, each, generator=generator)
    likely = torch.rand(experts, generator=generator) ** 3 + 1e-6
    likely[1] = 0
    numbers = likely.log().add(torch.rand(rows, experts, generator=generator)).topk(each).indices
    ours = native.run_experts(
        x, numbers, weights, *(native.together([one for _, (one,) in side]) for side in kept)
    )
    for n in range(rows):
        terms = []
        for number, weight in zip(numbers[n].tolist(), weights[n], strict=True):
            opened = native.multiply(x[n : n + 1], kept[0][number][1])[0]
            gated = native.gate(*opened.chunk(2, dim=-1))
            terms.append(native.multiply(gated, kept[1][number][1])[0].double() * weight.double())
        exact, slack = sum(terms), 1e-6 * sum(t.abs() for t in terms)
        assert bool(((ours[n : n + 1].double() - exact).abs() <= 2**-8 * exact.abs() + slack).all())
    alone = [
        native.run_experts(
            *(t[n : n + 1] for t in (x, numbers, weights)),
            *(native.together([one for _, (one,) in side]) for side in kept),
        )
        for n in (0, rows - 1)
    ]
    assert torch.equal(torch.cat(alone), ours[[0, rows - 1]])


@pytest.mark.parametrize("number", [-1, 2, 1 << 40])
def test_an_expert_that_there_is_not(number: int) -> None:
    weight = random(32, 32)
    _keep, matrices = packed(weight)
    both = native.together([matrices[0]] * 2)
    x, weights = random(2, 32), torch.ones(2, 1)
    with pytest.raises(IndexError, match="expert"):
        native.run_experts(x, torch.tensor([[0], [number]]), weights, both, both)


@pytest.mark.parametrize("rows", [1, 2, 40])
def test_the_same_rows_with_several_matrices(rows: int) -> None:
    weights = [random(outs, inputs(66), seed=outs) for outs in (130, 48, 1, 200)]
    biases = [None, random(48), random(1), None]
    kept = [packed(weight, bias) for weight, bias in zip(weights, biases, strict=True)]
    x = random(1, rows, inputs(66), seed=9)
    ours = native.multiply(x, native.together([one for _, (one,) in kept]))
    for weight, bias, out in zip(weights, biases, ours, strict=True):
        assert out.shape == (1, rows, len(weight))
        assert_product(out, x, weight, bias)


@pytest.mark.parametrize("shape", SHAPES)
def test_product_with_a_plain_matrix(shape: tuple[int, int]) -> None:
    weight = random(*shape)
    assert native.multiplies(weight)
    for rows in range(1, native.MOST_PLAIN + 2):
        x = random(rows, shape[1], seed=rows)
        assert_product(native.multiply_plain(x, weight), x, weight)


def test_a_row_is_the_same_alone_as_beside_others() -> None:
    weight = random(1000, inputs(1000))
    _keep, matrices = packed(weight)
    x = random(40, inputs(1000), seed=1)
    (together,) = native.multiply(x, matrices)
    for row in range(40):
        (alone,) = native.multiply(x[row : row + 1], matrices)
        assert torch.equal(alone[0], together[row])


def test_rows_that_are_no_neighbours() -> None:
    weight, wide = random(64, 64), random(4, 128, seed=1)
    _keep, matrices = packed(weight)
    assert_product(native.multiply(wide[:, ::2], matrices)[0], wide[:, ::2], weight)
    assert_product(native.multiply_plain(wide[:, ::2], weight), wide[:, ::2], weight)


def test_what_is_left_to_torch() -> None:
    weight, odd = random(64, 64), random(64, 63)
    assert not native.multiplies(weight.float())
    assert not native.multiplies(weight.T)
    if native.packs():
        assert native.find(weight) is None
        assert native.pack([odd]) is None
        assert native.pack([weight.float()]) is None
        assert native.pack([weight], random(64).float()) is None
    else:
        assert native.pack([weight]) is None
        assert native.find(odd) is not None
        assert native.find(weight.T) is None
        assert native.find(weight, random(64).float()) is None


@pytest.mark.parametrize("shape", SHAPES)
def test_what_is_packed_is_all_there(shape: tuple[int, int]) -> None:
    """In blocks, in parts, and where the rows of one do not end with sixteen."""
    if not native.packs():
        pytest.skip("the kernels for this CPU read matrices as they are")
    weight = random(shape[0], inputs(shape[1]))
    for parts in ([weight], weight.split(16), weight.split(24), [weight.T.contiguous().T]):
        found = native.pack(list(parts))
        assert found is not None
        held, (matrix,) = found
        assert (matrix.outs, matrix.ins) == weight.shape
        assert held.data_ptr() == matrix.packed
        assert torch.equal(native.plain(held, *weight.shape, matrix.block), weight)


@pytest.mark.parametrize("rows", [1, 2, 7, 40])
def test_rows_of_their_own_for_each_matrix(rows: int) -> None:
    weights = [random(80, inputs(66), seed=n) for n in range(5)]
    kept = [packed(weight) for weight in weights]
    x = random(rows, 5, inputs(66), seed=9).transpose(0, 1)
    ours = native.multiply_each(x, native.together([one for _, (one,) in kept]))
    for weight, given, out in zip(weights, x, ours, strict=True):
        assert_product(out, given, weight)
