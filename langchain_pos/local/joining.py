"""`join="reuse"`: the conclusion sees the branches where they lie, and nothing is fed again.

The branches stay in their segments, side by side: they share positions, as they did while they
were written. The conclusion's segment is a child of all of them and begins behind the longest one.

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
from langchain_pos.reasoning.prompts import join_text
from langchain_pos.results.data import END_MARK

if TYPE_CHECKING:
    from langchain_pos.engine.decoding.sequence import DecodingSequence
    from langchain_pos.engine.engine import Engine
    from langchain_pos.local.trunk import Trunk
    from langchain_pos.results.data import BranchResult


def reuse(
    engine: Engine,
    trunk: Trunk,
    branches: Sequence[BranchResult],
    grown: Sequence[DecodingSequence],
) -> list[Feed]:
    """Let the trunk go on behind finished branches that stay where they are.

    Args:
        engine: holds the segments.
        trunk: what the branches have grown on; goes on in a new segment.
        branches: what they say.
        grown: how they were decoded, in the same order.

    Returns:
        what has to be fed along with the conclusion's first token: the little of the branches
        that the model has written and not read, such as a last token at the budget's end.
    """
    feeds = []
    end = trunk.end
    for branch, sequence in zip(branches, grown, strict=True):
        segment = sequence.segment
        kept, rest = _body(engine, branch, sequence)
        token_ids = [*sequence.prompt_ids, *sequence.token_ids[:kept], *rest]
        # A branch that failed may have left keys that are no numbers; it is fed once more.
        fed = 0 if branch.error else segment.end - segment.start
        seen = min(fed, len(sequence.prompt_ids) + kept)
        engine.truncate(segment, segment.start + seen)
        if seen < len(token_ids):
            feeds.append(Feed(segment, token_ids[seen:]))
        end = max(end, segment.start + len(token_ids))
    segment = engine.join([sequence.segment for sequence in grown], at=end)
    # Drafts are looked up in the text, so the trunk's tokens say what the branches said.
    tail = f"\n{END_MARK}\n"
    text = join_text([(branch.title, branch.text) for branch in branches])
    trunk.settle(trunk.encode(text.removesuffix(tail)))
    trunk.segment, trunk.shift = segment, len(trunk.token_ids) - end
    trunk.settle(encode_continuation(engine.tokenizer, tail))
    return feeds


def _body(
    engine: Engine, branch: BranchResult, sequence: DecodingSequence
) -> tuple[int, list[int]]:
    """How many of the written tokens are the branch's text, and tokens for the rest of it.

    What was stripped, and the stop sequence, is not. A token that reaches into it is not kept; its
    text before it is the rest.
    """
    stream = TextStream(engine.tokenizer, sequence.prompt_ids)
    text, kept, length, lead = "", 0, 0, 0
    for count, token_id in enumerate(sequence.token_ids if branch.text else (), start=1):
        text += stream.decode(token_id)
        lead = len(text) - len(text.lstrip())
        if len(text) > lead + len(branch.text):
            break
        if not stream.unfinished:
            kept, length = count, len(text)
    return kept, encode_continuation(engine.tokenizer, branch.text[max(length - lead, 0) :])
