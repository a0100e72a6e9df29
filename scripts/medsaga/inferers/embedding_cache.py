"""Image embeddings kept in memory, so that a further prompt on a slice costs a decoder pass only."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable

import torch

__all__ = ["EmbeddingCache"]


class EmbeddingCache:
    """Tensors by key; above a number of bytes, the least recently used are dropped. Safe to use from several threads.

    Args:
        max_bytes: bound on the sum of the tensors kept; a single larger one is returned but not kept.
    """

    def __init__(self, max_bytes: int = 256 * 2**20) -> None:
        self.max_bytes = max_bytes
        self._entries: OrderedDict[Hashable, torch.Tensor] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def __contains__(self, key: Hashable) -> bool:
        return key in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def nbytes(self) -> int:
        """Bytes in use."""
        return self._bytes

    def get(self, key: Hashable, compute: Callable[[], torch.Tensor]) -> torch.Tensor:
        """The tensor of a key, computed when it is not there.

        Two threads that miss the same key at once both compute it; where that is expensive, the caller prevents it with
        a lock of its own.
        """
        with self._lock:
            if key in self._entries:
                self._entries.move_to_end(key)
                return self._entries[key]
        tensor = compute()
        size = tensor.untyped_storage().nbytes()
        with self._lock:
            if key not in self._entries and size <= self.max_bytes:
                self._entries[key] = tensor
                self._bytes += size
                while self._bytes > self.max_bytes:
                    self._bytes -= self._entries.popitem(last=False)[1].untyped_storage().nbytes()
        return tensor

    def clear(self) -> None:
        """Drop all tensors."""
        with self._lock:
            self._entries.clear()
            self._bytes = 0
