"""Values that stay from one step to the next."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, Generic, TypeVar

Value = TypeVar("Value")


class Latest(Generic[Value]):
    """A function that remembers its latest values by their arguments.

    Unlike `functools.lru_cache` it belongs to one object: it is freed, copied and pickled with it.

    Args:
        function: of hashable arguments.
        keep: how many values are kept.
    """

    def __init__(self, function: Callable[..., Value], keep: int = 1) -> None:
        self._function, self._keep = function, keep
        self._values: dict[tuple[Hashable, ...], Value] = {}

    def __call__(self, *arguments: Any) -> Value:
        if arguments not in self._values:
            value = self._function(*arguments)
            while len(self._values) >= self._keep:
                del self._values[next(iter(self._values))]  # the oldest: dictionaries keep their order
            self._values[arguments] = value
        return self._values[arguments]
