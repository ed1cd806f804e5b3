"""Tokens to text and back, for parts of longer texts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from tokenizers import Tokenizer

from langchain_pos.engine.tokenization.stopping import StoppedText, TextEnd
from langchain_pos.errors import InvalidRequestError, UnsupportedModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ANCHORS = ("\n", "a", ":", " a")
CONTEXT_TOKENS = 9
"""Maximum number of context tokens with which a token is decoded."""
_LONGEST_CHARACTER = 4  # bytes of UTF-8, and so tokens
_UNFINISHED = "\ufffd"
_SURROGATE = re.compile("[\ud800-\udfff]")


def backend(tokenizer: PreTrainedTokenizerBase) -> Tokenizer:
    """The `tokenizers` object inside a transformers tokenizer.

    Raises:
        UnsupportedModelError: the tokenizer has none.
    """
    found: Tokenizer | None = getattr(tokenizer, "backend_tokenizer", None)
    if found is None:
        raise UnsupportedModelError(
            f"{type(tokenizer).__name__} is a Python tokenizer; a fast one (tokenizer.json) is "
            "needed. Convert it with transformers' convert_slow_tokenizer, or use another model"
        )
    return found


@lru_cache(maxsize=16)
def _plain(tokenizer: PreTrainedTokenizerBase, size: int) -> Tokenizer:
    """A copy that treats special tokens as ordinary text; `size` shows when it is outdated.

    transformers switches this on the one object that all threads share, for every call; another
    thread's chat template would lose its special tokens.
    """
    copy = Tokenizer.from_str(backend(tokenizer).to_str())
    copy.encode_special_tokens = True
    copy.no_truncation()
    copy.no_padding()
    return copy


def encode_text(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Encode plain text, in which special tokens have no meaning.

    Raises:
        InvalidRequestError: it holds half of a surrogate pair, which is not a character.
    """
    if half := _SURROGATE.search(text):
        raise InvalidRequestError(
            f"the text holds U+{ord(half[0]):04X}, half of a surrogate pair, which is not a "
            "character; check where it was cut or decoded"
        )
    return list(_plain(tokenizer, len(tokenizer)).encode(text, add_special_tokens=False).ids)


def encode_continuation(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Encode text that continues other text.

    SentencePiece-like tokenizers put a space before what they take for a beginning. So the text
    is encoded after an anchor, whose tokens are then removed.
    """
    if not text:
        return []
    for anchor in _ANCHORS:
        head = encode_text(tokenizer, anchor)
        whole = encode_text(tokenizer, anchor + text)
        if head and whole[: len(head)] == head:
            return whole[len(head) :]
    return encode_text(tokenizer, text)


def whole_characters(tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int]) -> list[int]:
    """The tokens without an incomplete character at the end."""
    whole = list(token_ids)
    while whole and _decode(tokenizer, whole[-CONTEXT_TOKENS:]).endswith(_UNFINISHED):
        whole.pop()
    return whole


def _decode(tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int]) -> str:
    return backend(tokenizer).decode(list(token_ids), skip_special_tokens=True)


def _beyond(known: str, text: str) -> str:
    """The new part of `text`, which begins like `known`, up to an incomplete character there."""
    if text.startswith(known):
        return text[len(known) :]
    shared = (at for at, (old, new) in enumerate(zip(known, text, strict=False)) if old != new)
    return text[next(shared, len(text)) :]


class TextStream(StoppedText):
    """Turns a sequence's tokens into text as they arrive, and finds stop sequences.

    `push` and `flush` are those of `StoppedText`; `decode` returns what to push.

    Args:
        tokenizer: a fast tokenizer.
        context: tokens before the first one; some tokenizers write a space only between tokens.
        stop: texts that end the sequence; they and what follows are left out.
        strip: see `StoppedText`.
        end: see `StoppedText`.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        context: Sequence[int] = (),
        stop: Sequence[str] = (),
        *,
        strip: bool | str = False,
        end: TextEnd | None = None,
    ) -> None:
        super().__init__(stop, strip=strip, end=end)
        self._tokenizer = tokenizer
        self.follow(context)

    def follow(self, context: Sequence[int]) -> None:
        """Set the tokens before the next one; their text is not part of this one."""
        # The window must not begin inside a character: one of four adjacent places is right.
        for size in range(CONTEXT_TOKENS, CONTEXT_TOKENS - _LONGEST_CHARACTER, -1):
            self._window = list(context[-size:])  # tokens that are decoded together
            self._known = _decode(self._tokenizer, self._window)  # their text so far
            if not self._known.startswith(_UNFINISHED):
                break
        self._begun = 0  # tokens since the last whole character, if one is begun
        self._settled = len(self._window)  # tokens of the window before its last piece of text

    @property
    def unfinished(self) -> bool:
        """Whether the last token ends inside a character."""
        return self._begun > 0

    def decode(self, token_id: int) -> str:
        """The text that a token adds: whole characters; often none, for byte tokens.

        Invalid bytes become U+FFFD, as the tokenizer decodes them.
        """
        self._window.append(token_id)
        text = _decode(self._tokenizer, self._window)
        whole = text.rstrip(_UNFINISHED)
        if whole != text:
            if piece := _beyond(self._known, whole):
                self._known, self._begun = whole, 1
                return piece
            if self._begun + 1 < _LONGEST_CHARACTER:
                self._begun += 1
                return ""
        piece = _beyond(self._known, text)
        self._known, self._begun = text, 0
        # The next token is decoded after only the last ones, so that steps stay equally fast; but
        # not after none at all (as special tokens are), because it would lose its space.
        tail = self._window[self._settled :]
        if known := _decode(self._tokenizer, tail):
            self._window, self._known = tail, known
        self._settled = len(self._window)
        return piece
