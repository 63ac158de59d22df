"""One way to put back what a pass through a model may change beside its gradients: buffers, attributes, random states."""

import contextlib
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from bigstep.step.torch_internals import buffers_of, version_of

__all__ = ["ModuleState", "StateGuard", "preserved_gradients", "preserved_state"]

OWN = frozenset(nn.Module().__dict__) | {"_compiled_call_impl"}  # what every module keeps: parameters, children, hooks, ...
CONTAINERS = (list, dict, set, deque)
PLAIN = (Tensor, int, float, bool, str, type(None), *CONTAINERS)
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
class _Slot:
    """A tensor, a container or a plain value that a module holds, as it was."""

    holder: dict[str, Any]
    name: str
    prefix: str
    value: Any
    version: int
    copy: Any

    @classmethod
    def of(cls, holder: dict[str, Any], name: str, prefix: str, *, copied: bool) -> "_Slot":
        value = holder[name]
        if not isinstance(value, Tensor):
            return cls(
                holder, name, prefix, value, 0, _Contents.of(value) if copied and isinstance(value, CONTAINERS) else None
            )
        return cls(holder, name, prefix, value, version_of(value), value.detach().clone() if copied else None)

    @property
    def full_name(self) -> str:
        return self.prefix + self.name

    @property
    def is_buffer(self) -> bool:
        return "training" not in self.holder and isinstance(self.holder.get(self.name), Tensor)

    @property
    def key(self) -> tuple[int, str]:
        return id(self.holder), self.name

    def changed(self) -> bool:
        value = self.holder.get(self.name)
        if value is not self.value:
            return True
        if isinstance(self.copy, _Contents):
            return self.copy.changed()
        if not isinstance(value, Tensor) or version_of(value) != self.version:
            return isinstance(value, Tensor)
        return self.copy is not None and not torch.equal(value, self.copy)  # batch_norm writes without counting versions

    def value_now(self) -> Tensor:
        value: Tensor = self.holder[self.name]
        return value.detach().clone()

    def restore(self) -> None:
        self.holder[self.name] = self.value
        if isinstance(self.copy, _Contents):
            if self.copy.changed():
                self.copy.restore()
        elif self.copy is not None and not torch.equal(self.value, self.copy):
            self.value.copy_(self.copy)


@final
class ModuleState:
    """Buffers, plain attributes and containers of a model, as they were; changes in place and assignments are put back."""

    def __init__(self, *models: nn.Module, skip: frozenset[tuple[int, str]] = frozenset()) -> None:
        """Copy the tensors, but those of ``skip``, which are kept by reference."""
        modules = [(f"{name}." if name else "", module) for model in models for name, module in model.named_modules()]
        self._names = [(module.__dict__, set(module.__dict__)) for _, module in modules]
        self._slots = [
            _Slot.of(holder, name, prefix, copied=(id(holder), name) not in skip)
            for prefix, module in modules
            for holder, name in _state_of(module)
        ]

    def changed_buffers(self) -> dict[str, Tensor]:
        """Return copies of the buffers that have changed since, by full name."""
        return {slot.full_name: slot.value_now() for slot in self._slots if slot.is_buffer and slot.changed()}

    def unchanged(self) -> frozenset[tuple[int, str]]:
        """Return the keys of what has not changed since."""
        return frozenset(slot.key for slot in self._slots if not slot.changed())

    @torch.no_grad()
    def restore(self) -> None:
        """Put everything back; attributes that are new are removed."""
        for holder, names in self._names:
            for name in set(holder) - names - OWN:
                del holder[name]
        for slot in self._slots:
            slot.restore()


@final
class StateGuard:
    """Puts a model's state back where a step ends by an exception, at the cost of copying only what steps do change."""

    def __init__(self, *models: nn.Module) -> None:
        """Guard ``models``; the first step in each mode finds out what changes."""
        self._models = models
        self._constant: dict[tuple[bool, ...], frozenset[tuple[int, str]]] = {}

    @contextlib.contextmanager
    def step(self, *, learns: bool = True) -> Iterator[None]:
        """Restore buffers, attributes and torch's random state on the CPU where the block ends by an exception.

        Without ``learns`` the block runs no pass, so it does not show what steps change.
        """
        mode = tuple(module.training for model in self._models for module in model.modules())
        state = ModuleState(*self._models, skip=self._constant.get(mode, frozenset()))
        random_state = torch.random.get_rng_state()
        try:
            yield
        except BaseException:
            state.restore()
            torch.random.set_rng_state(random_state)
            raise
        if learns:
            self._constant[mode] = state.unchanged()


@contextlib.contextmanager
def preserved_state(*models: nn.Module) -> Iterator[ModuleState]:
    """Put buffers and plain attributes back when the block ends, however it ends."""
    state = ModuleState(*models)
    try:
        yield state
    finally:
        state.restore()


@contextlib.contextmanager
def preserved_gradients(parameters: Iterable[Tensor]) -> Iterator[None]:
    """Clear ``.grad`` within the block, and put it back when it ends, however it ends."""
    kept = [(parameter, parameter.grad) for parameter in parameters]
    for parameter, _ in kept:
        parameter.grad = None
    try:
        yield
    finally:
        for parameter, gradient in kept:
            parameter.grad = gradient


def _items(container: Any) -> list[tuple[Any, Any]]:
    return list(container.items()) if isinstance(container, dict) else [(None, item) for item in container]


def _held(item: Any) -> Any:
    return item.container if isinstance(item, _Contents) else item


def _state_of(module: nn.Module) -> Iterator[tuple[dict[str, Any], str]]:
    yield from ((buffers_of(module), name) for name in buffers_of(module))
    attributes = module.__dict__
    yield from ((attributes, name) for name in attributes if name not in OWN and isinstance(attributes[name], PLAIN))
