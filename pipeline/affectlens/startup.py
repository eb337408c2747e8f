"""How a process of ours starts: what makes the libraries come in sooner."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncollected() -> Iterator[None]:
    """Within, no garbage is collected; what is there at the end counts as permanent. For commands alone.

    Importing torch and transformers and loading a model makes a million objects that nothing lets go. Looking through
    them again and again was a fifth of the time to a first reading, and of every later collection nearly all. A program
    of somebody else's may hold garbage that is worth collecting, so the library leaves its collector as it is.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
