"""Keyed randomness: what is drawn depends on the key alone, never on strategy, stack, neighbours or device.

And what tells things apart by name: digests, and numbers in labels.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch


def generator_seed(*key: int | str) -> int:
    """A 63-bit seed from a key such as `(seed, "batches", task, epoch)`."""
    text = "/".join(str(part) for part in key)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) >> 1


def generator(*key: int | str) -> torch.Generator:
    """A CPU generator seeded by `generator_seed(*key)`."""
    return torch.Generator().manual_seed(generator_seed(*key))


def digest(content: Any) -> str:
    """16 hex digits that identify JSON-serialisable content."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def short(value: float) -> str:
    """A number in few digits, but so that it reads back equal: values that differ differ in labels and tables too."""
    return f"{value:g}" if float(f"{value:g}") == value else repr(value)  # ruff: ignore[float-equality-comparison] (exactly)
