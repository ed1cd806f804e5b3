"""Which way to attend is the fastest on a GPU: measured when a model is loaded."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial

import torch

from langchain_pos.engine.attention import (
    FOLDED,
    SPLIT,
    fold_mask,
    folded_attention_forward,
    split_attention_forward,
)
from langchain_pos.engine.flex import FLEX, FlexAttention

_ROWS, _SLOTS, _PREFIX = 32, 2048, 1536
_CALLS, _ROUNDS = 10, 8

logger = logging.getLogger(__name__)


@torch.inference_mode()
def fastest(heads: int, kv_heads: int, dim: int, dtype: torch.dtype, device: torch.device) -> str:
    """`FOLDED`, `SPLIT` or `FLEX`: the fastest on a CUDA device at 32 rows and 2048 slots.

    The rows are branches behind a prompt of 1536 tokens, 16 tokens each, interleaved as they are
    written. A way that does not run here is left out, and the log (debug) says why.
    """
    rows, groups = torch.arange(_ROWS, device=device), heads // kv_heads
    slots = torch.arange(_SLOTS, device=device)
    seen = (slots < _PREFIX) | (slots % _ROWS == rows[:, None])
    mask = torch.zeros(seen.shape, device=device, dtype=dtype).masked_fill_(~seen, float("-inf"))
    mask = fold_mask(mask[None, None], groups)
    query = torch.randn(1, heads, _ROWS, dim, device=device, dtype=dtype)
    key, value = torch.randn(2, 1, kv_heads, _SLOTS, dim, device=device, dtype=dtype)

    def flexible(flex: FlexAttention) -> None:
        blocks = flex.mask(seen, groups)
        if blocks is None or flex.attend(query, key, value, blocks, None) is None:
            raise RuntimeError(flex.failed)

    module = torch.nn.Identity()
    ways: dict[str, Callable[[], object]] = {
        FOLDED: partial(folded_attention_forward, module, query, key, value, mask),
        SPLIT: partial(split_attention_forward, module, query, key, value, mask),
        FLEX: partial(flexible, FlexAttention(device)),
    }
    taken: dict[str, float] = {}
    for name, attend in ways.items():
        try:
            taken[name] = _milliseconds(attend, device)
        except Exception as error:  # noqa: BLE001  a kernel that is not there for this shape
            logger.debug("%s attention is left out: %s", name, error)
    logger.debug("milliseconds for %d calls of attention: %s", _CALLS, taken)
    return min(taken, key=taken.__getitem__, default=FOLDED)


def _milliseconds(attend: Callable[[], object], device: torch.device) -> float:
    """Ten calls in a recorded graph, the fastest of eight rounds.

    In a graph because that is how they run in a pass: called one by one, the launching of several
    small kernels would be measured, and not the kernels.
    """
    with torch.cuda.device(device):
        # Once outside: what is compiled cannot be recorded while it is.
        aside = torch.cuda.Stream(device)
        aside.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(aside):
            attend()
        torch.cuda.current_stream(device).wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            for _ in range(_CALLS):
                attend()
        times: list[float] = []
        for _ in range(_ROUNDS):
            began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            began.record()
            graph.replay()
            ended.record()
            ended.synchronize()
            times.append(began.elapsed_time(ended))
    return min(times)
