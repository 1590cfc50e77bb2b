"""Which documents a shard asks: a range of the task's own order, or of one that is drawn, the same on every machine;
and in which order an engine meets them.
"""

import hashlib
from functools import lru_cache


def documents_of(num_docs: int, start: int, stop: int, seed: int | None) -> list[int]:
    """The documents at places ``start`` to ``stop`` (half open) of the order, by number; ``seed`` None: the task's own.

    What comes first in a drawn order is a random sample of all.
    """
    return list(range(start, stop)) if seed is None else sorted(_drawn(num_docs, seed)[start:stop])


def asked_order(num_documents: int, rerun: int) -> list[int]:
    """In which order an engine is asked a shard's documents: their own in the first run, another one in each rerun."""
    return _drawn(num_documents, rerun) if rerun else list(range(num_documents))


@lru_cache(maxsize=64)
def _drawn(num_docs: int, seed: int) -> list[int]:
    """By a hash of each number, which no version of a library changes and which more documents do not disturb."""
    return sorted(range(num_docs), key=lambda doc_id: hashlib.sha256(f"{seed}/{doc_id}".encode()).digest())
