"""Attention for training on a CPU: torch's flash forward and a backward that stays in the cache.

torch's own flash backward for CPUs took half of a whole training step (measured, 2 cores with
AMX). This one recomputes the scores one batch element at a time with bf16 matrix products and does
everything between them in one pass over memory. It is compiled on first use (needs g++ and ninja);
`attention` falls back to `scaled_dot_product_attention` if that is not possible or the tensors are
not bf16 on a CPU.
"""

from __future__ import annotations

import functools
import warnings

import torch
import torch.nn.functional as functional
from torch import Tensor

_SOURCE = r"""
#include <torch/extension.h>
#include <ATen/Parallel.h>
#include <ATen/cpu/vec/vec.h>
using namespace at;
using VecH = vec::Vectorized<BFloat16>;
using VecF = vec::Vectorized<float>;

// scores, grads: (H, Q, K) bf16. On return scores = P and grads = P * (dP - delta).
static void fuse(Tensor& scores, Tensor& grads, const Tensor& mask, const Tensor& lse,
                 const Tensor& delta, double scale, bool causal) {
  const int64_t heads = scores.size(0), queries = scores.size(1), keys = scores.size(2);
  BFloat16* s = scores.data_ptr<BFloat16>();
  BFloat16* g = grads.data_ptr<BFloat16>();
  const BFloat16* m = causal ? nullptr : mask.data_ptr<BFloat16>();
  const float* l = lse.data_ptr<float>();
  const float* d = delta.data_ptr<float>();
  at::parallel_for(0, heads * queries, 64, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const int64_t query = row % queries;
      BFloat16* sr = s + row * keys;
      BFloat16* gr = g + row * keys;
      const int64_t stop = causal ? query + 1 : keys;
      const VecF vl(l[row]), vd(d[row]), vs((float)scale);
      int64_t i = 0;
      for (; i + VecH::size() <= stop; i += VecH::size()) {
        auto [s0, s1] = vec::convert_bfloat16_float(VecH::loadu(sr + i));
        auto [g0, g1] = vec::convert_bfloat16_float(VecH::loadu(gr + i));
        s0 = s0 * vs - vl; s1 = s1 * vs - vl;
        if (m) {
          auto [m0, m1] = vec::convert_bfloat16_float(VecH::loadu(m + query * keys + i));
          s0 = s0 + m0; s1 = s1 + m1;
        }
        s0 = s0.fexp_u20(); s1 = s1.fexp_u20();
        vec::convert_float_bfloat16(s0, s1).store(sr + i);
        vec::convert_float_bfloat16(s0 * (g0 - vd), s1 * (g1 - vd)).store(gr + i);
      }
      for (; i < stop; ++i) {
        float x = (float)sr[i] * (float)scale - l[row] + (m ? (float)m[query * keys + i] : 0.f);
        x = std::exp(x);
        const float grad = x * ((float)gr[i] - d[row]);
        sr[i] = (BFloat16)x;
        gr[i] = (BFloat16)grad;
      }
      if (i < keys) {
        memset((void*)(sr + i), 0, (keys - i) * sizeof(BFloat16));
        memset((void*)(gr + i), 0, (keys - i) * sizeof(BFloat16));
      }
    }
  });
}

// q, out, d_out: (B, H, Q, D) bf16; k, v: (B, H, K, D) bf16;
// mask: (B, Q, K) bf16; lse: (B, H, Q) fp32.
std::vector<Tensor> attention_backward(Tensor d_out, Tensor q, Tensor k, Tensor v, Tensor out,
                                       Tensor lse, Tensor mask, double scale, bool causal) {
  const int64_t batch = q.size(0), heads = q.size(1), queries = q.size(2), keys = k.size(2);
  auto delta = (d_out.to(kFloat) * out.to(kFloat)).sum(-1).contiguous();
  lse = lse.contiguous();
  auto dq = at::empty(q.sizes(), q.options()), dk = at::empty(k.sizes(), k.options());
  auto dv = at::empty(v.sizes(), v.options());
  auto scores = at::empty({heads, queries, keys}, q.options());
  auto grads = at::empty({heads, queries, keys}, q.options());
  for (int64_t b = 0; b < batch; ++b) {
    at::bmm_out(scores, q[b], k[b].transpose(1, 2));
    at::bmm_out(grads, d_out[b], v[b].transpose(1, 2));
    fuse(scores, grads, causal ? scores : mask[b], lse[b], delta[b], scale, causal);
    auto dqb = dq[b], dkb = dk[b], dvb = dv[b];
    at::bmm_out(dqb, grads, k[b]);
    at::bmm_out(dkb, grads.transpose(1, 2), q[b]);
    at::bmm_out(dvb, scores.transpose(1, 2), d_out[b]);
  }
  return {dq.mul_(scale), dk.mul_(scale), dv};
}
"""


@functools.cache
def _kernel() -> object | None:
    """Compile the backward; None without a compiler."""
    try:
        from torch.utils.cpp_extension import load_inline

        return load_inline(  # type: ignore[no-any-return]
            "langchain_pos_attention_backward",
            _SOURCE,
            functions=["attention_backward"],
            extra_cflags=[
                "-O3",
                "-march=native",
                "-DCPU_CAPABILITY=AVX512",
                "-DCPU_CAPABILITY_AVX512",
            ],
        )
    except Exception as error:  # noqa: BLE001 (any failure: no fast path)
        warnings.warn(f"No fast attention backward, using torch's own: {error}", stacklevel=2)
        return None


@torch.library.custom_op("langchain_pos::attention_forward", mutates_args=())
def _forward(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool
) -> tuple[Tensor, Tensor]:
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        q, k, v, 0.0, causal, attn_mask=mask
    )
    return out.contiguous(), lse.transpose(1, 2).contiguous() if lse.shape[1] != q.shape[
        1
    ] else lse.contiguous()


@_forward.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), q.new_empty(q.shape[:3], dtype=torch.float32)


@torch.library.custom_op("langchain_pos::attention_backward", mutates_args=())
def _backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    mask: Tensor | None,
    causal: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    flat_mask = q if mask is None else mask[:, 0].contiguous()
    dq, dk, dv = _kernel().attention_backward(  # type: ignore[union-attr]
        grad, q, k, v, out, lse, flat_mask, q.shape[-1] ** -0.5, causal
    )
    return dq, dk, dv


@_backward.register_fake
def _(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    mask: Tensor | None,
    causal: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _setup(ctx: torch.autograd.function.FunctionCtx, inputs: tuple, output: tuple) -> None:
    q, k, v, mask, ctx.causal = inputs
    ctx.save_for_backward(q, k, v, mask, *output)


def _grad(ctx: torch.autograd.function.FunctionCtx, d_out: Tensor, _: Tensor) -> tuple:
    q, k, v, mask, out, lse = ctx.saved_tensors
    return *_backward(d_out, q, k, v, out, lse, mask, ctx.causal), None, None


_forward.register_autograd(_grad, setup_context=_setup)


def available(device: str, dtype: torch.dtype) -> bool:
    """Whether the fast backward can be used; compiles it on the first call."""
    return device == "cpu" and dtype == torch.bfloat16 and _kernel() is not None


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, fast: bool) -> Tensor:
    """Return attention `(B, H, Q, D)`.

    Args:
        q: `(B, H, Q, D)`.
        k: `(B, H, K, D)`.
        v: like `k`.
        mask: `(B, 1, Q, K)`, additive, of q's dtype; None means causal.
        fast: use the compiled backward (only if `available` returned True).
    """
    if fast:
        out, _ = _forward(q, k, v, mask, mask is None)
        return out
    return functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
