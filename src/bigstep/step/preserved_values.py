"""Values that a module holds, as they were: tensors, plain values, and containers with what is in them."""

from collections import deque
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bigstep.step.torch_internals import version_of

__all__ = ["IN_PLACE", "PLAIN", "Slot"]

CONTAINERS = (list, dict, set, deque)
IN_PLACE = (Tensor, *CONTAINERS)  # may change without being assigned
PLAIN = (int, float, bool, str, tuple, type(None), *IN_PLACE)
MAX_DEPTH = 3  # of containers in containers


@dataclass(frozen=True)
class _Contents:
    """What a container held, and containers in it, by reference."""

    container: Any
    items: list[tuple[Any, Any]]

    @classmethod
    def of(cls, container: Any, depth: int = 0) -> "_Contents":
        items = _items(container)
        if depth < MAX_DEPTH:
            items = [(key, cls.of(item, depth + 1) if isinstance(item, CONTAINERS) else item) for key, item in items]
        return cls(container, items)

    def changed(self) -> bool:
        now = _items(self.container)
        return len(now) != len(self.items) or any(
            key is not old_key or _held(old) is not item or (isinstance(old, _Contents) and old.changed())
            for (key, item), (old_key, old) in zip(now, self.items, strict=True)
        )

    def restore(self) -> None:
        for _, item in self.items:
            if isinstance(item, _Contents) and item.changed():
                item.restore()
        self.container.clear()
        for key, item in self.items:
            if isinstance(self.container, dict):
                self.container[key] = _held(item)
            elif isinstance(self.container, set):
                self.container.add(item)
            else:
                self.container.append(_held(item))


@dataclass(frozen=True)
class Slot:
    """A tensor, a container or a plain value that a module holds, as it was."""

    holder: dict[str, Any]
    name: str
    prefix: str
    value: Any
    version: int
    copy: Any

    @classmethod
    def of(cls, holder: dict[str, Any], name: str, prefix: str, *, copied: bool) -> "Slot":
        """Return the value as it is; ``copied``: with a copy of a tensor, and of what a container holds."""
        value = holder[name]
        if not isinstance(value, Tensor):
            return cls(
                holder, name, prefix, value, 0, _Contents.of(value) if copied and isinstance(value, CONTAINERS) else None
            )
        return cls(holder, name, prefix, value, version_of(value), value.detach().clone() if copied else None)

    @property
    def full_name(self) -> str:
        """Of a buffer or attribute in the model."""
        return self.prefix + self.name

    @property
    def is_buffer(self) -> bool:
        """Whether it is a buffer."""
        return "training" not in self.holder and isinstance(self.holder.get(self.name), Tensor)

    @property
    def key(self) -> tuple[int, str]:
        """What it is known by from step to step."""
        return id(self.holder), self.name

    def changed(self) -> bool:
        """Return whether it has changed since."""
        value = self.holder.get(self.name)
        if value is not self.value:
            return True
        if isinstance(self.copy, _Contents):
            return self.copy.changed()
        if not isinstance(value, Tensor) or version_of(value) != self.version:
            return isinstance(value, Tensor)
        return self.copy is not None and not _same(value, self.copy)  # batch_norm writes without counting versions

    def value_now(self) -> Tensor:
        """Return a copy of the tensor as it is now."""
        value: Tensor = self.holder[self.name]
        return value.detach().clone()

    def restore(self) -> None:
        """Put it back."""
        self.holder[self.name] = self.value
        if isinstance(self.copy, _Contents):
            if self.copy.changed():
                self.copy.restore()
        elif self.copy is not None and not _same(self.value, self.copy):
            self.value.copy_(self.copy)


def _same(value: Tensor, before: Tensor) -> bool:
    """Return whether two tensors are equal; what is not a number counts as the same."""
    if torch.equal(value, before) or value.shape != before.shape or not value.is_floating_point():
        return torch.equal(value, before)
    return bool(((value == before) | (value.isnan() & before.isnan())).all())


def _items(container: Any) -> list[tuple[Any, Any]]:
    return list(container.items()) if isinstance(container, dict) else [(None, item) for item in container]


def _held(item: Any) -> Any:
    return item.container if isinstance(item, _Contents) else item
