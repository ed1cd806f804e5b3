"""Greedy decoding in the three stages, as simply as possible: only for measuring checkpoints.

The package has an engine for real use; this code shares nothing with it, so each checks the other.
Many rows continue one shared prefix in lock-step; a row sees the prefix and itself, and step `t`
of every row has position `P + t`, which is the belt of the paper.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor

from training.model import Shape, Weights, _norm, _rotate, rope_tables
from training.tokenizer import END

Cache = list[tuple[Tensor, Tensor]]


def load_weights(folder: Path) -> tuple[Weights, Shape]:
    """Read an exported model back into stacked fp32 weights."""
    config = json.loads((folder / "config.json").read_text())
    state = load_file(folder / "model.safetensors")
    shape = Shape(
        vocab=config["vocab_size"],
        hidden=config["hidden_size"],
        layers=config["num_hidden_layers"],
        heads=config["num_attention_heads"],
        feed_forward=config["intermediate_size"],
        rope_theta=config["rope_parameters"]["rope_theta"],
        norm_eps=config["rms_norm_eps"],
    )

    def stack(*names: str) -> Tensor:
        layers = [
            torch.cat([state[f"model.layers.{i}.{name}"] for name in names])
            for i in range(shape.layers)
        ]
        return torch.stack(layers).float()

    attention = [f"self_attn.{x}_proj" for x in "qkv"]
    weights = {
        "embed": state["model.embed_tokens.weight"].float(),
        "qkv": stack(*(f"{x}.weight" for x in attention)),
        "qkv_bias": stack(*(f"{x}.bias" for x in attention)),
        "out": stack("self_attn.o_proj.weight"),
        "gate_up": stack("mlp.gate_proj.weight", "mlp.up_proj.weight"),
        "down": stack("mlp.down_proj.weight"),
        "norm_attn": stack("input_layernorm.weight"),
        "norm_mlp": stack("post_attention_layernorm.weight"),
        "norm_final": state["model.norm.weight"].float(),
    }
    return weights, shape


@dataclass
class Decoded:
    """The output of the three stages for one question."""

    preamble: str
    titles: list[str]
    bodies: list[str]
    conclusion: str


class Decoder:
    """The exported model, decoding greedily."""

    def __init__(self, folder: Path) -> None:
        self.weights, self.shape = load_weights(folder)
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.end = self.tokenizer.token_to_id(END)
        names = [n for n, w in self.weights.items() if w.shape[0] == self.shape.layers]
        self._layers = [{n: self.weights[n][i] for n in names} for i in range(self.shape.layers)]

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a text."""
        return list(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def prompt(self, question: str) -> list[int]:
        """Return the question as a user's turn with the generation prompt."""
        return [
            *self.encode("<|user|>"),
            *self.encode(question),
            self.end,
            *self.encode("<|assistant|>"),
        ]

    @torch.no_grad()
    def feed(self, prefix: Cache, own: Cache, tokens: Tensor, start: int) -> tuple[Tensor, Cache]:
        """Run `tokens` `(B, T)` after a shared `prefix` and each row's `own` cache.

        Args:
            prefix: `(H, P, D)` keys and values of each layer, seen by all rows (may be empty).
            own: `(B, H, S, D)` of each layer, or an empty list.
            tokens: `(B, T)` int64.
            start: position of the first token.

        Returns:
            Logits of the last token `(B, vocab)` and the rows' cache with the new tokens.
        """
        shape, (rows, count) = self.shape, tokens.shape
        positions = torch.arange(start, start + count).expand(rows, count)
        cos, sin = rope_tables(shape, positions, torch.float32)
        x = self.weights["embed"][tokens]
        grown: Cache = []
        for i, w in enumerate(self._layers):
            h = _norm(x, w["norm_attn"], shape.norm_eps)
            q, k, v = (
                torch.nn.functional.linear(h, w["qkv"], w["qkv_bias"])
                .view(rows, count, 3, shape.heads, shape.head_dim)
                .permute(2, 0, 3, 1, 4)
            )
            q, k = _rotate(q, cos, sin) * shape.head_dim**-0.5, _rotate(k, cos, sin)
            if own:
                k, v = torch.cat((own[i][0], k), 2), torch.cat((own[i][1], v), 2)
            grown.append((k, v))
            later = torch.ones(count, k.shape[2]).tril(k.shape[2] - count) == 0
            scores = (q @ k.transpose(-1, -2)).masked_fill(later, float("-inf"))
            if prefix:
                scores = torch.cat((q @ prefix[i][0].transpose(-1, -2), scores), -1)
            shares = scores.softmax(-1)
            split = prefix[i][0].shape[1] if prefix else 0
            seen = shares[..., split:] @ v
            if prefix:
                seen = seen + shares[..., :split] @ prefix[i][1]
            x = x + seen.transpose(1, 2).reshape(rows, count, -1) @ w["out"].T
            h = _norm(x, w["norm_mlp"], shape.norm_eps) @ w["gate_up"].T
            gate, up = h.chunk(2, -1)
            x = x + (torch.nn.functional.silu(gate) * up) @ w["down"].T
        last = _norm(x[:, -1], self.weights["norm_final"], shape.norm_eps)
        return last @ self.weights["embed"].T, grown

    def _prefill(self, ids: list[int]) -> tuple[Tensor, Cache]:
        logits, cache = self.feed([], [], torch.tensor([ids]), 0)
        return logits, [(k[0], v[0]) for k, v in cache]

    def greedy(
        self, prefix: Cache, length: int, openings: list[list[int]], stops: list[str], limit: int
    ) -> list[str]:
        """Continue each opening after the prefix (`length` tokens) until a stop or the end."""
        rows = [list(o) for o in openings]
        done = [False] * len(rows)
        own: Cache = []
        step = 0
        while not all(done) and step < max(map(len, openings)) + limit:
            feed = torch.tensor([[r[step] if step < len(r) else self.end] for r in rows])
            logits, own = self.feed(prefix, own, feed, length + step)
            step += 1
            for i, token in enumerate(logits.argmax(-1).tolist()):
                if done[i] or step < len(rows[i]):
                    continue
                rows[i].append(token)
                text = self.tokenizer.decode(rows[i][len(openings[i]) :])
                full = len(rows[i]) - len(openings[i]) >= limit
                done[i] = full or token == self.end or any(s in text for s in stops)
        return [
            self.tokenizer.decode(r[len(o) :], skip_special_tokens=True)
            for r, o in zip(rows, openings, strict=True)
        ]

    def sequential(self, question: str, limit: int = 1600) -> str:
        """Return the whole answer, decoded sequentially."""
        ids = self.prompt(question)
        _, cache = self._prefill(ids[:-1])
        return self.greedy(cache, len(ids) - 1, [ids[-1:]], [], limit)[0]

    def parallel(self, question: str, limit: int = 80, most: int = 64) -> Decoded:
        """Return the answer of the three stages; stage 1 forces the text after a title's `:`."""
        ids = self.prompt(question)
        _, cache = self._prefill(ids[:-1])
        text = self.greedy(cache, len(ids) - 1, [ids[-1:]], ["####"], limit)[0]
        preamble = text.removesuffix("####")
        root = ids + self.encode(preamble)
        _, cache = self._prefill(root)
        # Stage 1: titles; text forced by the grammar is fed without running the model.
        titles: list[str] = []
        skeleton = self.encode("####")
        while len(titles) < most:
            own: Cache = []
            logits, own = self.feed(cache, own, torch.tensor([skeleton]), len(root))
            step, title = len(skeleton), ""
            while True:
                token = int(logits.argmax(-1))
                title += self.tokenizer.decode([token])
                skeleton.append(token)
                if title.endswith((":", "%%%%", "\n")) or token == self.end or len(title) > 80:
                    break
                logits, own = self.feed(cache, own, torch.tensor([[token]]), len(root) + step)
                step += 1
            if not title.endswith(":"):
                break
            titles.append(title[:-1])
            skeleton += self.encode("......\n####")
        # Stage 2: all branches in lock-step. Stage 3: the join.
        bodies: list[str] = []
        if titles:
            openings = [self.encode(f"####{t}:") for t in titles]
            bodies = self.greedy(cache, len(root), openings, ["####"], limit)
        joined = "".join(
            f"####{t}:{b.removesuffix('####')}" for t, b in zip(titles, bodies, strict=True)
        )
        join = self.encode(joined + "####%%%%\n")
        _, own = self.feed(cache, [], torch.tensor([join[:-1]]), len(root))
        whole = [
            (torch.cat((k, mine[0]), 1), torch.cat((v, other[0]), 1))
            for (k, v), (mine, other) in zip(cache, own, strict=True)
        ]
        start = len(root) + len(join) - 1
        conclusion = self.greedy(whole, start, [join[-1:]], [], 4 * limit)[0]
        return Decoded(preamble, titles, bodies, conclusion)
