"""Errors of many items, each with the item it belongs to."""

import contextlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from threading import Lock
from typing import Any

from resilience.errors import PartialCollectionError, PenstockError

ERRORS_KEPT = 1000


@dataclass(frozen=True, slots=True)
class ItemError:
    """An error, and the item or batch it belongs to."""

    item: Any
    error: Exception

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe facts."""
        if isinstance(self.error, PenstockError):
            return {"item": repr(self.item), **self.error.to_dict()}
        return {
            "item": repr(self.item),
            "error_type": type(self.error).__name__,
            "message": str(self.error),
        }


class ErrorCollector:
    """Errors with the items they belong to: the first 1,000, all of them counted. Threads may share one."""

    def __init__(self, *, keep: int = ERRORS_KEPT) -> None:
        self._keep = keep
        self._lock = Lock()
        self._errors: list[ItemError] = []
        self._by_type: Counter[str] = Counter()

    def __len__(self) -> int:
        return self._by_type.total()

    def __iter__(self) -> Iterator[ItemError]:
        return iter(tuple(self._errors))

    @property
    def by_type(self) -> dict[str, int]:
        """How many there were of each class."""
        return dict(self._by_type)

    def add(self, item: Any, error: Exception) -> None:
        """Keep an error, or only count it where there are too many."""
        with self._lock:
            self._by_type[type(error).__name__] += 1
            if len(self._errors) < self._keep:
                self._errors.append(ItemError(item, error))

    @contextlib.contextmanager
    def catching(self, item: Any) -> Iterator[None]:
        """Keep what the block raises, and go on after it."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - whatever it is, it is kept with its item
            self.add(item, error)

    def raise_if_any(self) -> None:
        """Raise PartialCollectionError where something was collected; the first error is its cause."""
        if not self._errors:
            return
        first = self._errors[0]
        raise PartialCollectionError(
            f"{len(self)} failed, first {first.item!r}: {type(first.error).__name__}: {first.error}",
            details=self.by_type,
            cause=first.error,
        ) from first.error
