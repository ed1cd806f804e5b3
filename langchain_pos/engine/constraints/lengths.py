"""Lengths of JSON strings, counted outside the grammar, where a bound costs nothing.

A grammar that counts characters has a state for each of them, and a mask to be computed for each
state. So the grammar has the rule of strings without a bound, and `LengthCounter` follows the text
beside it: which schema a string stands under, and how many characters it has. Where a token would
lead beyond the bound, or close a string too early, its bit is cleared. Away from the bounds there
is nothing to clear.

Where alternatives disagree about a string at one place, the widest of their bounds holds here, and
the reader of the whole text checks the rest.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

import torch

from langchain_pos.engine.constraints.schemas import ReadSchema
from langchain_pos.engine.constraints.values import Node

_QUOTE, _BACKSLASH, _COMMA = 0x22, 0x5C, 0x2C
_OPENING, _CLOSING = b"{[", b"}]"
_LONG = 1 << 30


class StringTokens:
    """What each token of a vocabulary does to a string that is open.

    Args:
        tokens: the bytes of each token.
        width: of the bitmasks, in tokens.
    """

    def __init__(self, tokens: Sequence[bytes], width: int) -> None:
        self.tokens = tokens
        self._width = width
        self.mask = lru_cache(maxsize=256)(self._mask)
        self._openings_beyond = lru_cache(maxsize=64)(self._beyond)

    @cached_property
    def _by_start(self) -> dict[bool, tuple[torch.Tensor, torch.Tensor]]:
        return {escaped: self._count(escaped) for escaped in (False, True)}

    def _count(self, escaped: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """Characters of each token up to a closing quote, and whether it has one; `[width]`."""
        found = [_inside(token, escaped) for token in self.tokens[: self._width]]
        found += [(0, False)] * (self._width - len(found))
        counts, closes = zip(*found, strict=True)
        return torch.tensor(counts, dtype=torch.int32), torch.tensor(closes)

    @cached_property
    def longest(self) -> int:
        """Characters that one token may add to a string."""
        return int(self._by_start[False][0].max()) + 1

    @cached_property
    def _openings(self) -> torch.Tensor:
        """Tokens with a quote and more after it: int64 `[n, 3]`.

        Each with the characters after its first quote, and whether there is another quote.
        """
        found = []
        for token_id, token in enumerate(self.tokens[: self._width]):
            place = token.find(b'"')
            if 0 <= place < len(token) - 1:
                count, closed = _inside(token[place + 1 :], escaped=False)
                found.append((token_id, len(token) - place - 1 if closed else count, int(closed)))
        return torch.tensor(found, dtype=torch.int64).reshape(-1, 3)

    def openings(self, least: int, *, closed: bool, row: torch.Tensor) -> list[int]:
        """Tokens of a bitmask that may open a string and leave its bounds at once.

        Args:
            least: characters that every string may have.
            closed: take those that close it again as well.
            row: int32 `[width / 32]`.
        """
        ids = self._openings_beyond(least, closed)
        if not len(ids):
            return []
        words = row[ids // 32].to(torch.int64)
        return [int(token_id) for token_id in ids[(words >> ids % 32) & 1 == 1]]

    def _beyond(self, least: int, closed: bool) -> torch.Tensor:
        counts, closing = self._openings[:, 1], self._openings[:, 2]
        return self._openings[(counts > least) | ((closing == 1) & closed), 0]

    def prepare(self) -> None:
        """Read the vocabulary now, not with the first mask."""
        _ = self.longest, self._openings

    def _mask(self, escaped: bool, room: int, missing: int) -> torch.Tensor:
        """Tokens that keep an open string within bounds: int32 `[width / 32]`, a bit for each.

        Args:
            escaped: the string ends in a backslash.
            room: characters that may still come.
            missing: characters that must still come.
        """
        counts, closes = self._by_start[escaped]
        return _packed((counts <= room) & (~closes | (counts >= missing)))


def _inside(token: bytes, escaped: bool) -> tuple[int, bool]:
    """Characters of a token that continues a string, as far as it does; and whether it ends it."""
    if b'"' not in token and b"\\" not in token:
        count = len(token) if token.isascii() else sum(byte & 0xC0 != 0x80 for byte in token)
        return max(count - escaped, 0), False
    count = 0
    for byte in token:
        if escaped:
            escaped = False
        elif byte == _QUOTE:
            return count, True
        elif byte & 0xC0 != 0x80:
            count += 1
            escaped = byte == _BACKSLASH
    return count, False


def _packed(allowed: torch.Tensor) -> torch.Tensor:
    """Booleans as a bitmask: int32 `[width / 32]`, the first token in the lowest bit."""
    bits = torch.zeros(-(-len(allowed) // 32) * 32, dtype=torch.int64)
    bits[: len(allowed)] = allowed
    words = (bits.view(-1, 32) << torch.arange(32)).sum(dim=1)
    return torch.where(words >= 1 << 31, words - (1 << 32), words).to(torch.int32)


class Lengths:
    """The bounds of one schema's strings, by where they stand.

    Attributes:
        bounded: whether there are any.
        has_least: whether there is a lower one.
        least_most: the smallest upper one; tokens that add less need no second look.
    """

    def __init__(self, schema: ReadSchema) -> None:
        self._defs: Mapping[str, Node] = schema.defs
        self.root = self._options([schema.root])
        nodes = [*_walk(schema.root), *(each for d in schema.defs.values() for each in _walk(d))]
        bounds = [node for node in nodes if "minLength" in node or "maxLength" in node]
        self.bounded = bool(bounds)
        self.has_least = any("minLength" in node for node in bounds)
        self.least_most = min((node.get("maxLength", _LONG) for node in bounds), default=_LONG)

    def _options(self, nodes: Iterable[Any]) -> tuple[Node, ...]:
        found: list[Node] = []
        waiting, seen = list(nodes), set()
        while waiting:
            node = waiting.pop()
            if not isinstance(node, dict) or id(node) in seen:
                continue
            seen.add(id(node))
            if "$ref" in node:
                waiting.append(self._defs[node["$ref"].removeprefix("#/$defs/")])
            elif "anyOf" in node:
                waiting += node["anyOf"]
            else:
                found.append(node)
        return tuple(found)

    def field(self, options: Iterable[Node], name: str) -> tuple[Node, ...]:
        """What may stand under a key."""
        found: list[Any] = []
        for node in options:
            if name in node.get("properties", {}):
                found.append(node["properties"][name])
            elif node.get("type") == "object":
                found += node.get("patternProperties", {}).values()
                found.append(node.get("additionalProperties"))
            elif "enum" in node or not node:
                found.append({})
        return self._options(found)

    def item(self, options: Iterable[Node], place: int) -> tuple[Node, ...]:
        """What may stand at a place of a list."""
        found: list[Any] = []
        for node in options:
            first = node.get("prefixItems", [])
            if place < len(first):
                found.append(first[place])
            elif node.get("type") == "array":
                found.append(node.get("items"))
            elif "enum" in node or not node:
                found.append({})
        return self._options(found)

    @staticmethod
    def of_string(options: Iterable[Node]) -> tuple[int, int]:
        """Characters that a string must and may have."""
        bounds = [
            (node.get("minLength", 0), node.get("maxLength", _LONG))
            for node in options
            if node.get("type") == "string" or not node or "enum" in node
        ]
        if not bounds:
            return 0, _LONG
        return min(least for least, _ in bounds), max(most for _, most in bounds)


def _walk(node: Any) -> Iterable[Node]:
    if not isinstance(node, dict):
        return
    if "enum" in node:
        return
    yield node
    for key in ("items", "additionalProperties"):
        yield from _walk(node.get(key))
    for key in ("anyOf", "prefixItems"):
        for each in node.get(key, ()):
            yield from _walk(each)
    for key in ("properties", "patternProperties"):
        for each in node.get(key, {}).values():
            yield from _walk(each)


@dataclass(frozen=True)
class _Frame:
    """An object or a list that is open."""

    options: tuple[Node, ...]
    is_object: bool
    place: int = 0
    key: str | None = None  # of an object, once it is read and until the comma


@dataclass
class JsonPlace:
    """Where a text stands in the JSON value that it is writing; bytes in, bounds out.

    Attributes:
        ended: the value is complete.
        kept: no string has left its bounds.
    """

    lengths: Lengths
    ended: bool = False
    kept: bool = True
    _frames: tuple[_Frame, ...] = ()
    _string: bool = False
    _escaped: bool = False
    _key: bytearray | None = None
    _count: int = 0
    _bounds: tuple[int, int] = (0, _LONG)

    def copy(self) -> JsonPlace:
        """One that goes on by itself."""
        key = None if self._key is None else bytearray(self._key)
        return replace(self, _key=key)

    @property
    def room(self) -> tuple[bool, int, int] | None:
        """Of an open, bounded string: whether it ends in a backslash, its room, what it lacks."""
        if not self._string or self._bounds == (0, _LONG):
            return None
        least, most = self._bounds
        return self._escaped, most - self._count, max(least - self._count, 0)

    def take(self, byte: int) -> None:
        """Go on by a byte of a text that the grammar allows."""
        if self._string:
            self._take_inside(byte)
        elif byte == _QUOTE:
            self._open_string()
        elif byte in _OPENING:
            self._frames = (*self._frames, _Frame(self._here(), byte == _OPENING[0]))
        elif byte in _CLOSING:
            self._frames = self._frames[:-1]
            self.ended = not self._frames
        elif byte == _COMMA and self._frames:
            last = self._frames[-1]
            self._frames = (*self._frames[:-1], replace(last, place=last.place + 1, key=None))

    def _take_inside(self, byte: int) -> None:
        if self._key is not None:
            self._key.append(byte)
        if self._escaped:
            self._escaped = False
        elif byte == _QUOTE:
            self._close_string()
        elif byte & 0xC0 != 0x80:
            self._count += 1
            self._escaped = byte == _BACKSLASH
            self.kept = self.kept and self._count <= self._bounds[1]

    def _open_string(self) -> None:
        self._string, self._count = True, 0
        last = self._frames[-1] if self._frames else None
        if last is not None and last.is_object and last.key is None:
            self._key, self._bounds = bytearray(b'"'), (0, _LONG)
        else:
            self._bounds = self.lengths.of_string(self._here())

    def _close_string(self) -> None:
        self._string = False
        self.kept = self.kept and self._count >= self._bounds[0]
        if self._key is not None:
            last = self._frames[-1]
            name = json.loads(bytes(self._key).decode(errors="replace"), strict=False)
            self._frames = (*self._frames[:-1], replace(last, key=name))
            self._key = None
        self.ended = not self._frames

    def _here(self) -> tuple[Node, ...]:
        if not self._frames:
            return self.lengths.root
        last = self._frames[-1]
        if last.is_object:
            return self.lengths.field(last.options, last.key or "")
        return self.lengths.item(last.options, last.place)


class LengthCounter:
    """Follows a text and keeps the strings of its JSON values within their bounds.

    Args:
        tokens: of the vocabulary.
        schemas: the bounds of each value, by the text that stands right before it; under "" that
            of a text that is a value as a whole.
    """

    def __init__(self, tokens: StringTokens, schemas: Mapping[bytes, Lengths]) -> None:
        self._tokens = tokens
        self._schemas = schemas
        whole = schemas.get(b"")
        self._place = None if whole is None else JsonPlace(whole)
        # What has been written, while it may yet become a tag instead of the whole value.
        self._prefix = b"" if whole is not None and len(schemas) > 1 else None
        self._before = b""  # the end of the free text

    def fork(self) -> LengthCounter:
        """One that goes on by itself."""
        fork = copy(self)
        fork._place = None if self._place is None else self._place.copy()
        return fork

    @property
    def kept(self) -> bool:
        """Whether the strings of the present value have kept their bounds so far."""
        return self._place is None or self._place.kept

    def take(self, text: bytes) -> None:
        """Go on by a text."""
        for place in range(len(text)):
            self._take(text[place : place + 1])

    def _take(self, byte: bytes) -> None:
        if self._prefix is not None:
            self._prefix += byte
            if (lengths := self._schemas.get(self._prefix)) is not None:
                self._place, self._prefix = JsonPlace(lengths), None
                return
            if not any(tag.startswith(self._prefix) for tag in self._schemas):
                self._prefix = None
        if self._place is not None and not self._place.ended:
            self._place.take(byte[0])
            return
        self._before = (self._before + byte)[-max(map(len, self._schemas)) :]
        for tag, lengths in self._schemas.items():
            if tag and self._before.endswith(tag):
                self._place, self._before = JsonPlace(lengths), b""

    def restrict(self, row: torch.Tensor) -> None:
        """Clear the bits of tokens that would lead beyond a bound.

        Where the grammar leaves no other token, nothing is cleared: the text goes on, and its
        reader finds that it does not fit.

        Args:
            row: int32 `[width / 32]`, the tokens that the grammar allows.
        """
        place = self._place
        if place is None or place.ended or self._prefix is not None:
            return
        left = row.clone()
        if (bounds := place.room) is not None:
            escaped, room, missing = bounds
            if room < self._tokens.longest or missing:
                longest = self._tokens.longest
                left &= self._tokens.mask(escaped, min(room, longest), min(missing, longest))
        for token_id in self._tokens.openings(
            place.lengths.least_most, closed=place.lengths.has_least, row=left
        ):
            ahead = place.copy()
            for byte in self._tokens.tokens[token_id]:
                if not ahead.ended:
                    ahead.take(byte)
            if not ahead.kept:
                bit = 1 << token_id % 32
                left[token_id // 32] &= ~bit if bit < 1 << 31 else 0x7FFFFFFF
        if bool(left.any()):
            row.copy_(left)
