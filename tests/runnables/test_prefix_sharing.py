"""Questions that begin alike: answered as if each were alone, with less to feed."""

from __future__ import annotations

import pytest

from tests.support.scripted import TOKENIZERS, random_llm, without_clocks

DOCUMENT = " ".join(f"Line {n} says {n * 7 % 13}." for n in range(30))
ASKED = [f"{DOCUMENT}\nWhat is in line {n}?" for n in (3, 8, 12, 19)]
DIFFER = ("cached_tokens", "peak_slots", "forward_passes", "drafts")


def told(result: object) -> dict[str, object]:
    """A result without clocks and without what sharing changes."""
    data = without_clocks(result)  # type: ignore[arg-type]
    return {name: value for name, value in data.items() if name not in DIFFER}


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
@pytest.mark.parametrize("mode", ["parallel", "sequential"])
@pytest.mark.parametrize("join", ["reprefill", "reuse"])
def test_answers_are_those_of_an_engine_that_shares_nothing(
    tokenizer: str, mode: str, join: str
) -> None:
    """One after another, together, and once more; sampled, so that every number counts."""
    settings = {"mode": mode, "join": join, "temperature": 0.8, "seed": 5}
    alone = random_llm(TOKENIZERS[tokenizer](), **settings)
    alone.engine.scheduler.prefixes.max_parked = 0
    expected = [told(alone.invoke(question)) for question in ASKED]
    llm = random_llm(TOKENIZERS[tokenizer](), **settings)
    first = [llm.invoke(question) for question in ASKED]
    together = llm.batch(ASKED)
    again = random_llm(TOKENIZERS[tokenizer](), **settings).batch(ASKED)
    for results in (first, together, again):
        assert [told(result) for result in results] == expected
    assert first[0].cached_tokens == 0
    least = len(llm.engine.tokenizer.encode(DOCUMENT)) * 3 // 4
    assert all(result.cached_tokens > least for result in [*first[1:], *together, *again[1:]])
    assert llm.engine.slots_in_use == 0


def test_peak_slots_count_what_is_shared() -> None:
    """A question's own peak is its prompt and what was written, whoever else holds the prompt."""
    llm = random_llm(max_branches=3)
    first, second = llm.invoke(ASKED[0]), llm.invoke(ASKED[0])
    assert second.cached_tokens == second.usage.input_tokens - 1
    assert abs(first.peak_slots - second.peak_slots) <= 1
