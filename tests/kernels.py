"""For tests of the kernels in C. Where they were compiled, for this CPU, they must load: none is skipped."""

from __future__ import annotations

import pytest

from glmchat.engine import native

needs_kernels = pytest.mark.skipif(
    not native.LIBRARY.is_file() or not native.cpu_has("avx512_bf16") or native.cpu_has("amx_tile"),
    reason="the kernels were not compiled (no gcc), or are not for this CPU (AVX512-BF16 without AMX)",
)
