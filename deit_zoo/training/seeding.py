"""Randomness as a function: a draw depends on its key, never on what was drawn before.

So a run that is killed continues bit for bit, and the number of workers or processes changes
nothing. timm draws from Python's, NumPy's and torch's global generators; all three are set.
"""

from __future__ import annotations

import hashlib
import random

import numpy as np
import torch


def seed_from_key(*key: int | str) -> None:
    """Set every generator by a key such as (seed, epoch, replica, position, "augment")."""
    number = int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:8], "little")
    random.seed(number)
    np.random.seed(number % 2**32)
    # Not torch.manual_seed: where no GPU is in use, as in a loader's worker, it keeps a stack trace
    # for each kind of GPU that there might be, which takes longer than all the rest.
    torch.default_generator.manual_seed(number % 2**63)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.manual_seed_all(number % 2**63)
