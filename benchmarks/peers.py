"""Other ways of writing branches with transformers alone, each measured behind a shared prefix.

    sequential    `generate`, one branch after another
    copied cache  `generate` on N rows, each with a copy of the prefix's cache: what
                  Skeleton-of-Thought amounts to
    continuous    `generate_batch`, transformers' continuous batching; blocks of the prefix are
                  shared between requests

All are greedy, in the model's dtype, with `sdpa` attention. Every peer has the same signature:
prefix ids, branch openings, tokens to write → seconds, tokens, peak KV bytes (`Run`).
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import torch
from transformers import DynamicCache, GenerationConfig, LogitsProcessor, PreTrainedModel

from benchmarks.measuring import Clock, Run
from benchmarks.paper_algorithm import PaperAlgorithm, expand, keeps_states, kv_bytes

SEQUENTIAL = "generate, one after another"
COPIED = "generate, N rows over copied caches"
CONTINUOUS = "generate_batch"
PAPER = "the paper's algorithm"


class Forced(LogitsProcessor):
    """Lets `generate` write given tokens, after the model has done all its work.

    Args:
        targets: the tokens of each row.
        start: length of the prompt.
    """

    def __init__(self, targets: Sequence[Sequence[int]], start: int) -> None:
        self._targets = targets
        self._start = start

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Leave each row one token."""
        step = input_ids.shape[1] - self._start
        forced = torch.full_like(scores, float("-inf"))
        for row, target in enumerate(self._targets):
            forced[row, target[step] if step < len(target) else 0] = 0
        return forced


class Passes:
    """Counts a model's forward passes while it is open."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self.count = 0

    def __enter__(self) -> Passes:
        self._hook = self._model.register_forward_hook(self._add)
        return self

    def __exit__(self, *error: object) -> None:
        self._hook.remove()

    def _add(self, *_: object) -> None:
        self.count += 1


class Prefix:
    """A prefix in transformers' own cache, prefilled once, and the peers that go on behind it.

    Args:
        model: with `sdpa` attention and without EOS.
        token_ids: the prefix.
    """

    def __init__(self, model: PreTrainedModel, token_ids: Sequence[int]) -> None:
        self.model = model
        self.token_ids = list(token_ids)
        self._paper = PaperAlgorithm(model)
        self._paper.prefill(self.token_ids)

    @property
    def _cache(self) -> DynamicCache:
        return self._paper.cache

    @property
    def keeps_states(self) -> bool:
        """Whether some layers keep a state: then only `sequential` and `continuous` run."""
        return keeps_states(self._cache)

    def sequential(self, openings: Sequence[Sequence[int]], tokens: int, **settings: Any) -> Run:
        """`generate` behind the prefix, for one branch after another; `settings` are for it."""
        seconds = 0.0
        written, peak, passes = [], 0, 0
        for opening in openings:
            cache = copy.deepcopy(self._cache) if self.keeps_states else self._cache
            clock = Clock(self.model.device)
            with Passes(self.model) as counted:
                rows = self._generate(cache, [list(opening)], tokens, settings)
            seconds += clock()
            passes += counted.count
            peak = max(peak, kv_bytes(cache))
            written += rows
            if not self.keeps_states:
                self._paper.cut_back(len(self.token_ids))
        return Run(seconds, len(openings) * tokens, passes, peak, tuple(map(tuple, written)))

    def copied(self, openings: Sequence[Sequence[int]], tokens: int, **settings: Any) -> Run:
        """`generate` on a row for each branch; the copying is measured too.

        Openings shorter than the longest are padded on the left, between prefix and opening.
        """
        cache = copy.deepcopy(self._cache)  # so that the prefix is there for the next run
        clock = Clock(self.model.device)
        cache.batch_repeat_interleave(len(openings))
        copied = clock()
        with Passes(self.model) as counted:
            written = self._generate(cache, openings, tokens, settings)
        seconds = clock()
        return Run(
            seconds,
            len(openings) * tokens,
            counted.count,
            kv_bytes(cache),
            tuple(map(tuple, written)),
            {"copying": copied},
        )

    def paper(self, openings: Sequence[Sequence[int]], tokens: int) -> Run:
        """The paper's algorithm, stage 2."""
        return expand(self._paper, len(self.token_ids), openings, [tokens] * len(openings))

    def paper_ragged(self, openings: Sequence[Sequence[int]], lengths: Sequence[int]) -> Run:
        """The same with branches of different lengths."""
        return expand(self._paper, len(self.token_ids), openings, lengths)

    @torch.inference_mode()
    def _generate(
        self,
        cache: DynamicCache,
        openings: Sequence[Sequence[int]],
        tokens: int,
        settings: dict[str, Any],
    ) -> list[list[int]]:
        device, longest = self.model.device, max(map(len, openings))
        rows, masks = [], []
        for opening in openings:
            pad = longest - len(opening)
            rows.append([*self.token_ids, *[0] * pad, *opening])
            masks.append([*[1] * len(self.token_ids), *[0] * pad, *[1] * len(opening)])
        output = _generator(self.model).generate(
            torch.tensor(rows, device=device),
            attention_mask=torch.tensor(masks, device=device),
            past_key_values=cache,
            max_new_tokens=tokens,
            do_sample=False,
            **settings,
        )
        written: list[list[int]] = output[:, len(rows[0]) :].tolist()
        return written

    def continuous(self, openings: Sequence[Sequence[int]], tokens: int) -> Run:
        """`generate_batch`; see `continuous_batching`."""
        prompts = [[*self.token_ids, *opening] for opening in openings]
        return continuous_batching(self.model, prompts, tokens)


def _generator(model: PreTrainedModel) -> Any:
    """The model as something that generates: transformers declares that for its subclasses."""
    return model


def continuous_batching(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], tokens: int
) -> Run:
    """Transformers' `generate_batch` on one prompt for each branch.

    Its prefill and its decoding cannot be parted from outside, and early requests decode while
    late ones are prefilled. So what counts is the time in which all requests decode: from the
    last one's first token to the first one's last. They write more tokens than asked for, so that
    the early ones are not over before that.

    Raises:
        RuntimeError: a request failed; continuous batching's own words are given.
    """
    config_class: Any = import_module("transformers.generation").ContinuousBatchingConfig
    page = 64
    most = max(1024, len(prompts))  # tokens of a pass
    budget = tokens + 2 + sum(map(len, prompts)) // most
    longest = max(map(len, prompts)) + budget
    pages = len(prompts) * -(-longest // page) + 1
    names = inspect.signature(config_class).parameters
    config = config_class(
        # Sized for the work: left to itself it takes most of the memory, and fills it first.
        **{"page_size" if "page_size" in names else "block_size": page},
        num_blocks=pages + 8,
        max_batch_tokens=most,
        max_requests_per_batch=len(prompts),
    )
    settings = GenerationConfig(
        max_new_tokens=budget, do_sample=False, eos_token_id=-1, pad_token_id=0
    )
    before = model.config._attn_implementation
    try:
        found = _generator(model).generate_batch(
            [list(prompt) for prompt in prompts],
            generation_config=settings,
            continuous_batching_config=config,
            record_timestamps=True,
            progress_bar=False,
        )
    finally:
        model.set_attn_implementation(before)
    outputs = list(found.values())
    errors = [str(output.error) for output in outputs if output.error is not None]
    if errors or len(outputs) < len(prompts):
        raise RuntimeError(f"generate_batch: {errors[0] if errors else 'requests are missing'}")
    stamps = [list(output.timestamps or ()) for output in outputs]
    begin, end = max(some[0] for some in stamps), min(some[-1] for some in stamps)
    counted = sum(begin < stamp <= end for some in stamps for stamp in some)
    if not counted:
        raise RuntimeError("generate_batch: there was no moment when all requests decoded")
    return Run(
        seconds=end - begin,
        tokens=counted,
        written=tuple(tuple(output.generated_tokens[:tokens]) for output in outputs),
    )


def generate_text(
    model: PreTrainedModel,
    prompt_ids: Sequence[int],
    target_ids: Sequence[int],
    *,
    lookup: int | None = None,
) -> Run:
    """A whole answer by `generate`, prefill included, that writes given tokens.

    Args:
        model: with `sdpa` attention and without EOS.
        prompt_ids: the prompt.
        target_ids: the answer.
        lookup: tokens of a prompt look-up draft (`prompt_lookup_num_tokens`); None for none.
    """
    device = model.device
    settings: dict[str, Any] = {"prompt_lookup_num_tokens": lookup} if lookup else {}
    with torch.inference_mode(), Passes(model) as counted:
        clock = Clock(device)
        output = _generator(model).generate(
            torch.tensor([list(prompt_ids)], device=device),
            attention_mask=torch.ones(1, len(prompt_ids), dtype=torch.long, device=device),
            max_new_tokens=len(target_ids),
            do_sample=False,
            logits_processor=[Forced([target_ids], len(prompt_ids))],
            **settings,
        )
        seconds = clock()
    written = output[0, len(prompt_ids) :].tolist()
    return Run(seconds, len(target_ids), counted.count, written=(tuple(written),))


def answer(
    model: PreTrainedModel,
    prompt_ids: Sequence[int],
    max_new_tokens: int,
    eos_token_ids: frozenset[int],
) -> Run:
    """The model's own greedy answer by `generate`, up to EOS, which is not among its tokens."""
    device = model.device
    with torch.inference_mode(), Passes(model) as counted:
        clock = Clock(device)
        output = _generator(model).generate(
            torch.tensor([list(prompt_ids)], device=device),
            attention_mask=torch.ones(1, len(prompt_ids), dtype=torch.long, device=device),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            eos_token_id=sorted(eos_token_ids) or None,
            pad_token_id=0,
        )
        seconds = clock()
    written = output[0, len(prompt_ids) :].tolist()
    if written and written[-1] in eos_token_ids:
        written.pop()
    return Run(seconds, len(written), counted.count, written=(tuple(written),))
