"""`join="reuse"`: the conclusion sees the branches where they lie, and nothing is fed again.

The branches stay in their segments: they share positions, as they did while they were written.
The conclusion's segment is a child of all of them and begins after the longest one.

    positions   0 … P-1 │ P … P+5
    trunk       ■■■■■■■ │
    branch A            │ ■■■■
    branch B            │ ■■■■■■           conclusion: from P+6 on, sees all three
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from langchain_pos.engine.decoding.sequence import Feed
from langchain_pos.engine.tokenization.text import TextStream, encode_continuation

if TYPE_CHECKING:
    from langchain_pos.engine.decoding.sequence import DecodingSequence
    from langchain_pos.engine.engine import Engine
    from langchain_pos.local.trunk import LocalTrunk


def reuse(
    engine: Engine,
    trunk: LocalTrunk,
    joined: str,
    tail: str,
    bodies: Sequence[str],
    branches: Sequence[DecodingSequence],
) -> None:
    """Continue the trunk after finished branches that stay where they are.

    `trunk.feeds` then holds what must be fed along with the conclusion's first token: the tokens
    of branches that the model has written but not read, such as the last one at the end of a
    budget.

    Args:
        engine: holds the segments.
        trunk: parent of the branches; continues in a new segment.
        joined: the branches as one text, including `tail`.
        tail: the text after the last body.
        bodies: the branches' texts.
        branches: their sequences, in the same order.
    """
    end = trunk.end
    last: list[int] = []
    for body, sequence in zip(bodies, branches, strict=True):
        segment = sequence.segment
        kept, rest = _body(engine, body, sequence)
        token_ids = [*sequence.prompt_ids, *sequence.token_ids[:kept], *rest]
        if not tail and sequence is branches[-1]:
            # The conclusion's segment has to begin with something, and its last token is held back.
            last = token_ids[-2:]
            del token_ids[-2:]
        # A failed branch may have left NaN keys; it is fed once more.
        fed = 0 if sequence.error else segment.end - segment.start
        seen = min(fed, len(sequence.prompt_ids) + kept, len(token_ids))
        engine.truncate(segment, segment.start + seen)
        if seen < len(token_ids):
            trunk.feeds.append(Feed(segment, token_ids[seen:]))
        end = max(end, segment.start + len(token_ids))
    segment = engine.join([sequence.segment for sequence in branches], at=end)
    # Drafts are looked up in the text, so the trunk's tokens include the branches' text.
    trunk.settle(joined.removesuffix(tail))
    if last:
        trunk.token_ids[-len(last) :] = last
    trunk.segment, trunk.shift = segment, len(trunk.token_ids) - len(last) - end
    trunk.settle(tail)


def _body(engine: Engine, body: str, sequence: DecodingSequence) -> tuple[int, list[int]]:
    """How many of the written tokens are the branch's text, and tokens for the rest of it.

    Stripped whitespace and the stop sequence do not count. A token that reaches into them is not
    kept; the part of its text before them is the rest.
    """
    stream = TextStream(engine.tokenizer, sequence.prompt_ids)
    text, kept, length, lead = "", 0, 0, 0
    for count, token_id in enumerate(sequence.token_ids if body else (), start=1):
        text += stream.decode(token_id)
        lead = len(text) - len(text.lstrip())
        if len(text) > lead + len(body):
            break
        if not stream.unfinished:
            kept, length = count, len(text)
    return kept, encode_continuation(engine.tokenizer, body[max(length - lead, 0) :])
