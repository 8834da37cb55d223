"""What is computed in C on a CPU, by kernels/, which is compiled when glmchat is installed, if there is gcc.

They are compiled for CPUs with AMX, with AVX512-BF16, with AVX512 and with AVX2 alone. The first two multiply
BF16; the others widen it to FP32, and read matrices as they are instead of packed.
"""

from __future__ import annotations

import ctypes
import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

AMX, BF16, AVX512, AVX2 = "amx_tile", "avx512_bf16", "avx512", "avx2"
INPUTS = {AMX: 32, BF16: 2, AVX512: 1, AVX2: 1}
"""By the builds, which are called after what a CPU must have: of how many inputs a matrix has a multiple."""
MOST_PLAIN = 8
"""Up to so many rows are multiplied with a matrix that is not packed faster than torch does it."""
_SIZES, _LARGEST = 32, 576
"""Sizes of a head are multiples of it, and at most so large."""
_BLOCKS = (64, 48, 32, 16)
"""How many outputs a block of a packed matrix may have. Of others the first so many are computed together."""
_LANES = _BLOCKS[-1]


def library(build: str) -> Path:
    """Where it is, if it was compiled."""
    return Path(__file__).with_name("kernels") / f"{build}.so"


def was_not_compiled() -> bool:
    """Whether only the library is missing, as where there was no gcc when glmchat was installed."""
    mine = build() if sys.platform == "linux" else None
    return mine is not None and not library(mine).is_file()


@functools.cache
def build() -> str | None:
    """Which is for this CPU.

    Intel's multiply BF16 by AVX512 at half the speed of FP32. AVX2's is only for where oneDNN has no products
    in BF16.
    """
    import torch

    permitted = getattr(torch.cpu, "_init_amx", lambda: False)  # Linux wants to be asked
    if cpu_has(AMX) and permitted():
        return AMX
    if cpu_has(BF16) and not _is_intel():
        return BF16
    if cpu_has(AVX512):
        return AVX512
    return AVX2 if cpu_has(AVX2) and not onednn_multiplies() else None


def _is_intel() -> bool:
    about = Path("/proc/cpuinfo")  # kernels are compiled for Linux alone
    return about.exists() and "GenuineIntel" in about.read_text(encoding="utf-8", errors="replace")


def cpu_has(feature: str) -> bool:
    """One of the builds' names, as torch tells; not where torch does not know."""
    import torch

    return bool(getattr(torch.cpu, f"_is_{feature}_supported", lambda: False)())


@functools.cache
def onednn_multiplies() -> bool:
    """Whether oneDNN is there, and multiplies matrices in BF16 on this CPU."""
    import torch

    mkldnn = torch.ops.mkldnn
    return (
        torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and hasattr(mkldnn, "_linear_pointwise")
        and hasattr(mkldnn, "_is_mkldnn_bf16_supported")
        and bool(mkldnn._is_mkldnn_bf16_supported())
    )


def packs() -> bool:
    """Whether there are kernels, and they read matrices as `pack` leaves them, and not as they are."""
    return usable() and build() in (AMX, BF16)


@functools.cache
def attends(dtype: Any, size: int) -> bool:
    """Whether there is a kernel for attention to keys of this type, with heads of this size."""
    import torch

    return dtype == torch.bfloat16 and size % _SIZES == 0 and size <= _LARGEST and usable()


def takes(*tensors: Any) -> bool:
    """Whether it is one for query, key and value [1, heads, tokens, size], and they lie as it reads them."""
    return len({t.shape[3] for t in tensors}) == 1 and all(
        attends(t.dtype, t.shape[3]) and t.stride(3) == 1 and not t.stride(2) % 2 and t.device.type == "cpu"
        for t in tensors
    )


def attend(query: Any, key: Any, value: Any, scale: float) -> Any:
    """query [1, heads, n, d], of the last n of m tokens, each of which attends to itself and those before it;
    key, value [1, groups, m, d]; scale > 0: [1, n, heads, d]."""
    _, heads, rows, size = query.shape
    groups, length = key.shape[1:3]
    out = query.new_empty((1, rows, heads, size))
    _loaded().glmchat_attend(
        *(t.data_ptr() for t in (query, key, value, out)),
        *(heads, groups, rows, length, size),
        *(t.stride(dimension) for t in (query, key, value) for dimension in (1, 2)),
        scale,
    )
    return out


class Matrix(ctypes.Structure):
    """Where a matrix [outs, ins] lies, packed in blocks of so many outputs or as it is, and what is added to
    its products. The tensors must live on."""

    _fields_ = (
        ("packed", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("outs", ctypes.c_ssize_t),
        ("ins", ctypes.c_ssize_t),
        ("block", ctypes.c_ssize_t),
    )


Matrices = ctypes.Array[Matrix]


def find(weight: Any, bias: Any = None) -> Matrices | None:
    """How to multiply with `weight` [outs, ins] as it is, and add `bias` [outs]; None where that is left to
    torch."""
    if packs() or not multiplies(weight) or not _adds(bias):
        return None
    return together([Matrix(weight.data_ptr(), _address(bias), *weight.shape, _BLOCKS[0])])


def pack(parts: Sequence[Any], bias: Any = None) -> tuple[Any, Matrices] | None:
    """Weights [outs, ins], one below the other, and what adds `bias` [outs], as they are multiplied with.

    First the numbers as they lie, which must live on; None where that is left to torch.
    """
    import torch

    outs, ins = sum(map(len, parts)), parts[0].shape[1]
    ours = is_bf16(*parts) and all(part.device.type == "cpu" for part in parts) and packs()
    if not ours or ins % INPUTS[build() or BF16] or not _adds(bias):
        return None
    if any(len(part) % _LANES for part in parts[:-1]):
        parts = [torch.cat(list(parts))]
    room = outs + -outs % _LANES
    held = parts[0].new_empty(room * ins)
    block = next(block for block in _BLOCKS if room % block == 0)
    matrix = Matrix(held.data_ptr(), _address(bias), outs, ins, block)
    first = 0
    for part in parts:
        rows = part.contiguous()
        _loaded().glmchat_pack(matrix, rows.data_ptr(), first, len(rows))
        first += len(rows)
    return held, together([matrix])


def plain(numbers: Any, outs: int, ins: int, block: int) -> Any:
    """The matrix [outs, ins] of which `pack` made these numbers [n]."""
    return numbers.view(-1, ins // 2, block, 2).transpose(1, 2).reshape(-1, ins)[:outs]


def _adds(bias: Any) -> bool:
    return bias is None or is_bf16(bias)


def _address(bias: Any) -> int | None:
    return None if bias is None else int(bias.data_ptr())


def together(matrices: Sequence[Matrix]) -> Matrices:
    """To be multiplied with the same rows at once. They have the same number of inputs."""
    return (Matrix * len(matrices))(*matrices)


def multiply(x: Any, matrices: Matrices) -> list[Any]:
    """x [..., ins] by each matrix: a tensor [..., outs] for each. All are BF16. Raises: ValueError."""
    x = x.contiguous()
    if x.shape[-1] != matrices[0].ins:
        raise ValueError(f"rows of {x.shape[-1]} are multiplied with a matrix that takes {matrices[0].ins}")
    shape = x.shape[:-1]
    rows = shape.numel()
    outs = [matrix.outs for matrix in matrices]
    out = x.new_empty(rows * sum(outs))
    _loaded().glmchat_multiply(x.data_ptr(), matrices, len(matrices), rows, out.data_ptr())
    if len(outs) == 1:
        return [out.view(*shape, outs[0])]
    return [
        part.view(*shape, width)
        for part, width in zip(out.split([rows * n for n in outs]), outs, strict=True)
    ]


def multiply_each(x: Any, matrices: Matrices) -> Any:
    """x [count, n, ins], each by a matrix of its own, which are all of one size: [count, n, outs]. All are
    BF16."""
    x = x.contiguous()
    count, rows, _ = x.shape
    out = x.new_empty((count, rows, matrices[0].outs))
    _loaded().glmchat_multiply_each(x.data_ptr(), matrices, count, rows, out.data_ptr())
    return out


def run_experts(x: Any, numbers: Any, weights: Any, gates: Matrices, downs: Matrices) -> Any:
    """The sum, by `weights` [n, k] in FP32, of what the experts of these numbers, [n, k] in int64, make of
    x [n, size]: [n, size]. Each has a matrix [2 * inner, size] in `gates`, for SiLU gates and what passes
    them, and one [size, inner] in `downs`. Raises IndexError for a number that no expert has."""
    x, numbers, weights = x.contiguous(), numbers.contiguous(), weights.contiguous()
    (rows, size), each = x.shape, numbers.shape[1]
    room = x.new_empty(rows * each * (size + 3 * downs[0].ins))
    places, out = numbers.new_empty(numbers.shape), x.new_empty(x.shape)
    if not _loaded().glmchat_experts(
        *(x.data_ptr(), numbers.data_ptr(), weights.data_ptr(), rows, each),
        *(gates, downs, len(gates), places.data_ptr(), room.data_ptr(), out.data_ptr()),
    ):
        raise IndexError("a token goes to an expert that there is not")
    return out


class Layer(ctypes.Structure):
    """A decoder layer: sizes, and where its weights lie, which must live on. See kernels/layer.c."""

    _fields_ = (
        *((name, ctypes.c_ssize_t) for name in ("hidden", "heads", "groups", "size")),
        *((name, ctypes.c_void_p) for name in ("before", "between", "query_norm", "key_norm")),
        *((name, ctypes.c_double) for name in ("before_eps", "between_eps", "query_eps", "key_eps", "scale")),
        *((name, ctypes.POINTER(Matrix)) for name in ("projections", "output", "opening", "closing")),
        *((name, ctypes.c_ssize_t) for name in ("experts", "each")),
        *((name, ctypes.c_void_p) for name in ("router", "bias")),
        *((name, ctypes.POINTER(Matrix)) for name in ("gates", "downs")),
        ("factor", ctypes.c_double),
        ("shared", ctypes.c_int32),
    )


Layers = ctypes.Array[Any]
"""Of pointers to them."""


def in_order(layers: Sequence[Layer]) -> Layers:
    """To be run one after the other."""
    return (ctypes.POINTER(Layer) * len(layers))(*map(ctypes.pointer, layers))


def run_layers(
    layers: Layers, x: Any, cos: Any, sin: Any, buffers: Sequence[tuple[Any, Any]], known: int
) -> Any:
    """x [..., n, hidden] after the layers. Rows come after `known` tokens, by cos and sin [..., n, turned],
    and their keys and values are put behind those of each layer in [1, groups, room, size], which have the
    same room.

    Raises: IndexError for an expert that there is not.
    """
    out, cos, sin = x.new_empty(x.shape).copy_(x), cos.contiguous(), sin.contiguous()
    rows, count, kernels = out.numel() // out.shape[-1], len(layers), _loaded()
    room = out.new_empty(kernels.glmchat_layers_room(layers, count, rows) // out.itemsize)
    addresses = ctypes.c_void_p * count
    keys, values = (addresses(*(t.data_ptr() for t in each)) for each in zip(*buffers, strict=True))
    if not kernels.glmchat_layers(
        *(layers, count, out.data_ptr(), rows, cos.data_ptr(), sin.data_ptr(), cos.shape[-1]),
        *(keys, values, buffers[0][0].stride(1), known, room.data_ptr()),
    ):
        raise IndexError("a token goes to an expert that there is not")
    return out


class Drafter(ctypes.Structure):
    """An MTP layer, likewise; `head` or `plain` makes logits of its states."""

    _fields_ = (
        ("layer", ctypes.POINTER(Layer)),
        *((name, ctypes.c_void_p) for name in ("table", "token_norm", "state_norm", "last_norm")),
        *((name, ctypes.c_double) for name in ("token_eps", "state_eps", "last_eps")),
        *((name, ctypes.POINTER(Matrix)) for name in ("joining", "head")),
        ("plain", ctypes.c_void_p),
        ("vocabulary", ctypes.c_ssize_t),
    )


def draft(
    drafter: Drafter, ids: Sequence[int], states: Any, count: int, angles: Any, buffers: Any, known: int
) -> list[int]:
    """`count` tokens that may follow the last of `ids`.

    Each of those follows a token of which the trunk gave the state, in `states` [1, n, hidden]. For `angles`,
    [1, n + count - 1, turned] each, `buffers` and `known` see `run_layers`.
    """
    rows, kernels = len(ids), _loaded()
    states, (cos, sin), (keys, values) = states.contiguous(), (t.contiguous() for t in angles), buffers
    room = states.new_empty(kernels.glmchat_draft_room(drafter, rows) // states.itemsize)
    guesses = (ctypes.c_int64 * count)()
    if not kernels.glmchat_draft(
        *(drafter, (ctypes.c_int64 * rows)(*ids), states.data_ptr(), rows, count),
        *(cos.data_ptr(), sin.data_ptr(), cos.shape[-1], keys.data_ptr(), values.data_ptr()),
        *(keys.stride(1), known, room.data_ptr(), guesses),
    ):
        raise IndexError("a token goes to an expert that there is not")
    return list(guesses)


def multiplies(weight: Any) -> bool:
    """Whether `multiply_plain` can be asked for."""
    import torch

    plain = weight.dtype == torch.bfloat16 and weight.device.type == "cpu" and weight.layout == torch.strided
    return bool(plain and weight.is_contiguous() and usable())


def is_bf16(*tensors: Any) -> bool:
    import torch

    return all(t.dtype == torch.bfloat16 for t in tensors)


def usable() -> bool:
    """Whether there are kernels for this CPU."""
    return _kernels() is not None


def multiply_plain(x: Any, weight: Any, *, exact: bool = False) -> Any:
    """x [n, ins] by a weight [outs, ins] that is not packed: [n, outs], in FP32 if `exact`."""
    import torch

    x = x.contiguous()
    out = x.new_empty((len(x), len(weight)), dtype=torch.float32 if exact else None)
    _loaded().glmchat_multiply_plain(
        x.data_ptr(), weight.data_ptr(), len(x), *weight.shape, exact, out.data_ptr()
    )
    return out


def norm(x: Any, weight: Any, eps: float) -> Any:
    """RMSNorm of x [..., size], scaled by weight [size]."""
    x = x.contiguous()
    size = x.shape[-1]
    out = x.new_empty(x.shape)
    _loaded().glmchat_norm(x.data_ptr(), weight.data_ptr(), x.numel() // size, size, eps, out.data_ptr())
    return out


def rotate(query: Any, key: Any, cos: Any, sin: Any) -> None:
    """RoPE in place on query and key [..., n, heads, size], by cos and sin [..., n, turned]."""
    (heads, size), turned = query.shape[-2:], cos.shape[-1]
    cos, sin = cos.contiguous(), sin.contiguous()
    _loaded().glmchat_rotate(
        *(query.data_ptr(), key.data_ptr(), cos.data_ptr(), sin.data_ptr()),
        *(cos.numel() // turned, heads, key.shape[-2], size, turned),
    )


def gate(gates: Any, ups: Any) -> Any:
    """SiLU of `gates`, times `ups`, both [..., size], their rows in steps of one length."""
    size = gates.shape[-1]
    out = gates.new_empty(gates.shape)
    _loaded().glmchat_gate(
        *(gates.data_ptr(), ups.data_ptr(), gates.stride(-2), out.numel() // size, size, out.data_ptr())
    )
    return out


def choose(logits: Any, bias: Any, each: int, *, shared: bool, scale: float) -> tuple[Any, Any]:
    """The `each` experts whose sigmoid, with `bias` [experts] added, is greatest for each row of `logits`
    [n, experts], all FP32. Weights [n, each], out of 1 together if `shared`, times `scale`; their numbers."""
    import torch

    rows, experts = logits.shape
    scores = logits.clone()
    numbers = logits.new_empty((rows, each), dtype=torch.int64)
    weights = logits.new_empty((rows, each))
    _loaded().glmchat_choose(
        *(scores.data_ptr(), bias.data_ptr(), rows, experts, each, shared, scale),
        *(numbers.data_ptr(), weights.data_ptr()),
    )
    return weights, numbers


def chooses(router: Any) -> bool:
    """Whether a router chooses experts as `choose` does."""
    import torch

    bias = getattr(router, "e_score_correction_bias", None)
    known = bias is not None and bias.dtype == torch.float32 and getattr(router, "num_group", 0) == 1
    return known and multiplies(router.weight)


def _loaded() -> ctypes.CDLL:
    kernels = _kernels()
    assert kernels is not None
    return kernels


@functools.cache
def _kernels() -> ctypes.CDLL | None:
    """The library; None where it was not compiled, or from older sources, finds no OpenMP that it knows, or
    is not for this CPU."""
    if (mine := build()) is None:
        return None
    try:
        return _declared(ctypes.CDLL(str(library(mine))))
    except (OSError, AttributeError):
        return None


def _declared(kernels: ctypes.CDLL) -> ctypes.CDLL:
    """With the types of what its functions take. Raises AttributeError where one is not there."""
    c: Any = ctypes
    pointer, size, number, real = c.c_void_p, c.c_ssize_t, c.c_int, c.c_double
    kernels.glmchat_attend.argtypes = [*[pointer] * 4, *[size] * 11, real]
    kernels.glmchat_pack.argtypes = [c.POINTER(Matrix), pointer, *[size] * 2]
    for products in (kernels.glmchat_multiply, kernels.glmchat_multiply_each):
        products.argtypes = [*[pointer] * 2, *[size] * 2, pointer]
    kernels.glmchat_experts.argtypes = [*[pointer] * 3, *[size] * 2, *[pointer] * 2, size, *[pointer] * 3]
    kernels.glmchat_experts.restype = c.c_bool
    kernels.glmchat_layers_room.argtypes = [pointer, *[size] * 2]
    kernels.glmchat_layers_room.restype = size
    kernels.glmchat_layers.argtypes = [pointer, size, pointer, size, *[pointer] * 2, size]
    kernels.glmchat_layers.argtypes += [*[pointer] * 2, *[size] * 2, pointer]
    kernels.glmchat_layers.restype = c.c_bool
    kernels.glmchat_draft_room.argtypes = [c.POINTER(Drafter), size]
    kernels.glmchat_draft_room.restype = size
    kernels.glmchat_draft.argtypes = [c.POINTER(Drafter), *[pointer] * 2, *[size] * 2, *[pointer] * 2, size]
    kernels.glmchat_draft.argtypes += [*[pointer] * 2, *[size] * 2, *[pointer] * 2]
    kernels.glmchat_draft.restype = c.c_bool
    kernels.glmchat_multiply_plain.argtypes = [*[pointer] * 2, *[size] * 3, number, pointer]
    kernels.glmchat_norm.argtypes = [*[pointer] * 2, *[size] * 2, real, pointer]
    kernels.glmchat_rotate.argtypes = [*[pointer] * 4, *[size] * 5]
    kernels.glmchat_gate.argtypes = [*[pointer] * 2, *[size] * 3, pointer]
    kernels.glmchat_choose.argtypes = [*[pointer] * 2, *[size] * 3, number, real, *[pointer] * 2]
    return kernels
