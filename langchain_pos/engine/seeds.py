"""Seeds of a request and of its parts."""

from __future__ import annotations

import hashlib
import secrets


def derive_seed(seed: int, *path: int | str) -> int:
    """A separate seed for each part of a request, the same in every run: 63 bits."""
    digest = hashlib.blake2b(repr((seed, *path)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def request_seed(given: int | None, *temperatures: float | None) -> int:
    """The seed of a request: the given one, else a new one if it is sampled.

    Without a temperature, output should be the same every time. Parts that are sampled all the
    same, such as the last attempt at a plan, then use a fixed seed.
    """
    if given is not None:
        return given
    return secrets.randbits(63) if any(temperatures) else 0
