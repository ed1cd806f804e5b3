"""How far a sequence has come in its grammar, and the tokens that may come next."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    import xgrammar

    from langchain_pos.engine.constraints.lengths import LengthCounter


class ConstraintState:
    """How far one sequence has come in its grammar.

    Args:
        compiled: the grammar.
        vocabulary: width of the model's logits.
        tokens: the bytes of each token.
        counter: of the lengths that the grammar leaves out; None where there are none.
    """

    def __init__(
        self,
        compiled: xgrammar.CompiledGrammar,
        vocabulary: int,
        tokens: Sequence[bytes],
        counter: LengthCounter | None = None,
    ) -> None:
        import xgrammar

        self._matcher = xgrammar.GrammarMatcher(compiled)
        self._stop_token_ids = list(self._matcher.stop_token_ids)
        self._vocabulary = vocabulary
        self._tokens = tokens
        self._counter = counter
        self._forced = ""

    @property
    def finished(self) -> bool:
        """Whether the text is complete and nothing may follow.

        Where it is complete and may yet go on, as a number can, EOS or the next digit is the
        model's choice.
        """
        import xgrammar

        if not self._matcher.is_completed():
            return False
        bitmask = xgrammar.allocate_token_bitmask(1, self._vocabulary)
        self._matcher.fill_next_token_bitmask(bitmask)
        bits = bitmask.view(torch.uint8)[0]
        for token_id in self._stop_token_ids:
            bits[token_id // 8] &= 0xFF ^ (1 << token_id % 8)
        return not bool(bits.any())

    def accept_token(self, token_id: int) -> bool:
        """Go on by a token. False, and nothing changes, when the grammar forbids it."""
        accepted = bool(self._matcher.accept_token(token_id))
        if accepted and self._counter is not None and token_id < len(self._tokens):
            self._counter.take(self._tokens[token_id])
        return accepted

    def accept_text(self, text: str) -> bool:
        """Go on by a text. False, and nothing changes, when it is forbidden.

        What the grammar forces is never forbidden by a length: there is nothing else to write.
        """
        counter = None if self._counter is None else self._counter.fork()
        if counter is not None:
            counter.take(text.encode())
            beyond = self._counter is not None and self._counter.kept and not counter.kept
            if beyond and text != self._forced:
                return False
        if not self._matcher.accept_string(text):
            return False
        self._counter = counter
        return True

    def forced_text(self) -> str:
        """The text that must come next whatever the model prefers; often empty."""
        if self._matcher.is_completed():
            return ""
        try:
            self._forced = str(self._matcher.find_jump_forward_string())
        except UnicodeDecodeError as error:  # it begins or ends inside a character
            self._forced = bytes(error.object[: error.start]).decode()
        return self._forced

    def restrict(self, bitmask: torch.Tensor, row: int) -> None:
        """Clear the tokens in `bitmask[row]` that a length forbids; see `apply_constraints`."""
        if self._counter is not None:
            self._counter.restrict(bitmask[row])

    def fork(self) -> ConstraintState:
        """A state that goes on from here on its own: for looking ahead."""
        fork = object.__new__(ConstraintState)
        fork._matcher = self._matcher.fork()
        fork._stop_token_ids, fork._vocabulary = self._stop_token_ids, self._vocabulary
        fork._tokens, fork._forced = self._tokens, self._forced
        fork._counter = None if self._counter is None else self._counter.fork()
        return fork


def apply_constraints(logits: torch.Tensor, states: Sequence[ConstraintState | None]) -> None:
    """Set the logits of forbidden tokens to minus infinity, in place.

    Args:
        logits: `[R, vocabulary]`.
        states: the grammar's state of each row, None for a free one.
    """
    if all(state is None for state in states):
        return
    import xgrammar

    rows = [index for index, state in enumerate(states) if state is not None]
    bitmask = xgrammar.allocate_token_bitmask(len(states), logits.shape[-1])
    fill_masks([state for state in states if state is not None], bitmask, rows)
    xgrammar.apply_token_bitmask_inplace(logits, bitmask.to(logits.device), indices=rows)


def fill_masks(
    states: Sequence[ConstraintState], bitmask: torch.Tensor, rows: Sequence[int]
) -> None:
    """Write the allowed tokens of each state into its row, all states together.

    Args:
        states: of the sequences.
        bitmask: int32 `[R, vocabulary / 32]`.
        rows: of each state.
    """
    import xgrammar

    if len(states) == 1:
        states[0]._matcher.fill_next_token_bitmask(bitmask, rows[0])
    else:
        batch = xgrammar.BatchGrammarMatcher()
        matchers = [state._matcher for state in states]
        batch.batch_fill_next_token_bitmask(matchers, bitmask, list(rows))
    for state, row in zip(states, rows, strict=True):
        state.restrict(bitmask, row)
