r"""The language of stage 1: what a skeleton may look like, as a grammar over text.

Text only, in the EBNF of xgrammar; `engine/constraints.py` compiles it for a tokenizer.

    Let us check each one.\n    preamble: whole lines, or nothing
    ####Ann:......\n            a step; after its `:` all is forced, up to the next `####`
    ####Ben:......\n
    ####%%%%                    the terminator; nothing follows

`#` occurs in `####` alone, so the first one opens the first step.

What the grammar leaves to others: how long a preamble or a title may get (the engine closes it,
see `closing`), and that titles differ (`Plan`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from langchain_pos.errors import InvalidRequestError
from langchain_pos.results.data import BODY_PLACEHOLDER, END_MARK, STEP_MARK

_END_REST = END_MARK.removeprefix(STEP_MARK)

PREAMBLE_CLOSE = f"\n{STEP_MARK}"
"""Ends the preamble at any place inside it, and opens the first step."""
STEP_CLOSE = f":{BODY_PLACEHOLDER}\n{STEP_MARK}"
"""Ends a title that has a character or more, and opens the next step."""
BLOCK_CLOSE = f":{BODY_PLACEHOLDER}\n{END_MARK}"
"""Ends a title that has a character or more, and the skeleton."""

# Code points, as inclusive ranges.
_CONTROLS = [(0x00, 0x08), (0x0B, 0x1F), (0x7F, 0x9F), (0xD800, 0xDFFF)]
_LINE_ENDS = [(0x0A, 0x0A), (0x2028, 0x2029)]
# White space and characters without a shape; a title must begin with something to be seen.
_BLANKS = [
    (0x09, 0x09),
    (0x20, 0x20),
    (0xA0, 0xA0),
    (0xAD, 0xAD),
    (0x1680, 0x1680),
    (0x180E, 0x180E),
    (0x2000, 0x200F),
    (0x202A, 0x202F),
    (0x205F, 0x206F),
    (0x3000, 0x3000),
    (0xFEFF, 0xFEFF),
]


def _all_but(characters: str, *ranges: Sequence[tuple[int, int]]) -> str:
    """A character class of everything that is not named.

    Written as the ranges that are left, because xgrammar before 0.2.8 cuts a negated class
    (`[^…]`) down to ASCII.
    """
    named = [(ord(c), ord(c)) for c in characters] + [pair for some in ranges for pair in some]
    left, start = [], 0
    for low, high in [*sorted(named), (0x110000, 0x110000)]:
        if start < low:
            left.append(f"\\U{start:08x}-\\U{low - 1:08x}")
        start = max(start, high + 1)
    return f"[{''.join(left)}]"


_FREE = _all_but("#", _CONTROLS, [(0x2028, 0x2029)])
_TITLE_START = _all_but("#:：%*", _CONTROLS, _LINE_ENDS, _BLANKS)
_TITLE = _all_but("#:：", _CONTROLS, _LINE_ENDS)

# Free text is a repeated character class and nothing finer: then xgrammar knows beforehand which
# tokens fit, and a mask takes microseconds. Repeating a group, such as "up to three `#` and then
# another character", makes it try all of 150,000 tokens each time, some 100 ms.
_RULES = f"""\
preamble ::= "" | {_FREE}* "\\n"
step ::= {_TITLE_START} {_TITLE}* {json.dumps(STEP_CLOSE)}
"""


def skeleton_grammar(
    *,
    max_branches: int,
    min_branches: int = 2,
    allow_decline: bool = True,
    continued: bool = False,
) -> str:
    """The grammar of a skeleton, in xgrammar's EBNF.

    Args:
        max_branches: most steps.
        min_branches: fewest steps.
        allow_decline: the skeleton may end after one step or none as well: the model means that
            the question does not fall into parts.
        continued: the text begins after an opening `####` that is already written, so there is
            no preamble.

    Raises:
        InvalidRequestError: the bounds are not `1 <= min_branches <= max_branches`.
    """
    if not 1 <= min_branches <= max_branches:
        raise InvalidRequestError(
            f"a plan of at least {min_branches} and at most {max_branches} steps cannot be; "
            "1 <= min_branches <= max_branches is needed"
        )
    head = "" if continued else f'preamble "{STEP_MARK}" '
    return f"root ::= {head}{_steps(min_branches, max_branches, allow_decline)}\n{_RULES}"


def _steps(fewest: int, most: int, allow_decline: bool) -> str:
    """All steps and the terminator, after the `####` that opens the first of them."""
    end = f'"{_END_REST}"'
    if not allow_decline:
        return f"step{{{fewest},{most}}} {end}"
    if fewest <= 2:
        return f"step{{0,{most}}} {end}"
    return f"({end} | step ({end} | step{{{fewest - 1},{most - 1}}} {end}))"


def closing(text: str) -> str:
    """The shortest text that ends a skeleton which breaks off after `text`.

    For a budget that runs out. Whether the grammar allows it depends on the steps so far: it does
    with `allow_decline`, or when the step being written is at least the last one needed.

    Args:
        text: a prefix of a text of the grammar (whole characters). For a grammar that is
            `continued`, with the `####` in front that it goes on from.

    Returns:
        What is missing: `text + closing(text)` ends with `####%%%%`.
    """
    line = text.rpartition("\n")[2]
    if STEP_MARK.startswith(line):  # at a line's beginning, or inside the `####` that opens it
        return END_MARK.removeprefix(line)
    if not line.startswith(STEP_MARK):  # inside the preamble
        return PREAMBLE_CLOSE + _END_REST
    title, colon, body = line.removeprefix(STEP_MARK).partition(":")
    if colon:
        return BLOCK_CLOSE.removeprefix(colon + body)
    if _END_REST.startswith(title):  # inside the terminator
        return _END_REST.removeprefix(title)
    return BLOCK_CLOSE
