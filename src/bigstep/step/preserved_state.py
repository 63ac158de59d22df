"""One way to put back what a pass through a model may change beside its gradients: buffers, attributes, random states.

Buffers include parameters that need no gradient, such as codes that move with the samples or a copy that follows the
network: the smallest of them, as long as together they hold no more than the parameters that do. The frozen network below
an adapter is larger, and nothing writes to it.
"""

import contextlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from operator import is_
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from bigstep.randomness.torch_internals import all_modules
from bigstep.step.preserved_values import IN_PLACE, PLAIN, Slot
from bigstep.step.processes import is_sharded
from bigstep.step.torch_internals import all_parameters, buffers_of, parameters_of

__all__ = ["ModuleState", "StateGuard", "preserved_gradients", "preserved_state"]

MAX_MODES = 64  # of which it is kept what changes
OWN = frozenset(nn.Module().__dict__) | {"_compiled_call_impl"}  # what every module keeps: parameters, children, hooks, ...


@dataclass(frozen=True)
class _Constant:
    """What steps leave as it is: keys of single values, and the attributes' names of modules in which nothing changes."""

    values: frozenset[tuple[int, str]] = frozenset()
    modules: Mapping[int, frozenset[str]] = field(default_factory=dict)
    frozen: frozenset[tuple[int, str]] = frozenset()
    """Keys of the parameters that count as buffers."""


@dataclass(frozen=True)
class _ModuleBefore:
    """One module as it was: names of its attributes and buffers, and what they held."""

    attributes: dict[str, Any]
    names: frozenset[str]
    slots: list[Slot]

    @classmethod
    def of(cls, module: nn.Module, prefix: str, known: _Constant) -> "_ModuleBefore":
        found = _state_of(module, known.frozen)
        slots = [Slot.of(holder, name, prefix, copied=(id(holder), name) not in known.values) for holder, name in found]
        return cls(module.__dict__, frozenset(module.__dict__), slots)

    def changed(self) -> bool:
        return any(slot.changed() or isinstance(slot.value, Tensor) for slot in self.slots)

    def restore(self) -> None:
        _remove(self.attributes, self.names | OWN)
        for slot in self.slots:
            slot.restore()


@final
@dataclass(frozen=True)
class ModuleState:
    """Buffers, plain attributes and containers of a model, as they were; changes in place and assignments are put back."""

    changing: list[_ModuleBefore]
    constant: list[tuple[dict[str, Any], dict[str, Any]]]
    """Attributes of modules in which nothing changes in place, and what they were."""

    @classmethod
    def named(cls, *models: nn.Module) -> "ModuleState":
        """Copy the tensors, and what containers hold, with their names."""
        named = [pair for model in models for pair in model.named_modules()]
        known = _Constant(frozen=_frozen(models))
        return cls([_ModuleBefore.of(module, f"{name}." if name else "", known) for name, module in named], [])

    @classmethod
    def copied(cls, *models: nn.Module) -> "ModuleState":
        """Copy the tensors, and what containers hold; keep the attributes of modules without any by reference."""
        changing, constant = [], []
        for module in all_modules(models):
            attributes = module.__dict__
            if buffers_of(module) or any(isinstance(attributes[name], IN_PLACE) for name in attributes if name not in OWN):
                changing.append(_ModuleBefore.of(module, "", _Constant()))
            else:
                constant.append((attributes, attributes.copy()))
        return cls(changing, constant)

    @classmethod
    def of(cls, modules: Iterable[nn.Module], known: _Constant) -> "ModuleState":
        """Keep what is ``known`` to be constant by reference, and copy the rest."""
        changing, constant = [], []
        for module in modules:
            attributes = module.__dict__
            if known.modules.get(id(attributes)) == attributes.keys() and not buffers_of(module):
                constant.append((attributes, attributes.copy()))
            else:
                changing.append(_ModuleBefore.of(module, "", known))
        return cls(changing, constant)

    def changed_buffers(self) -> dict[str, Tensor]:
        """Return copies of the buffers that have changed since, by full name."""
        slots = [slot for module in self.changing for slot in module.slots]
        return {slot.full_name: slot.value_now() for slot in slots if slot.is_buffer and slot.changed()}

    def unchanged(self, known: _Constant) -> _Constant:
        """Return what has not changed since, where ``known`` was kept by reference."""
        values = {slot.key for module in self.changing for slot in module.slots if not slot.changed()}
        whole = {id(module.attributes): module.names for module in self.changing if not module.changed()}
        for now, before in self.constant:
            if len(now) == len(before) and all(map(is_, now.values(), before.values())):
                whole[id(now)] = known.modules[id(now)]
        return _Constant(frozenset(values), whole, known.frozen)

    @torch.no_grad()
    def restore(self) -> None:
        """Put everything back; attributes that are new are removed."""
        for state in self.changing:
            state.restore()
        for now, before in self.constant:
            _remove(now, before.keys() | OWN)
            now.update({name: value for name, value in before.items() if name not in OWN})


@final
class StateGuard:
    """Puts a model's state back where a step ends by an exception, at the cost of copying only what steps do change."""

    def __init__(self, *models: nn.Module) -> None:
        """Guard ``models``; the first step in each mode finds out what changes."""
        self._models = models
        self._constant: dict[tuple[bool, ...], _Constant] = {}
        self._mode: tuple[bool, ...] = ()  # of each module, and whether each parameter needs a gradient

    def state(self) -> ModuleState:
        """Return the state before a step."""
        modules = all_modules(self._models)
        trained = [parameter.requires_grad for parameter in all_parameters(self._models)]
        self._mode = (*[module.training for module in modules], *trained)
        if len(self._constant) == MAX_MODES:  # parameters are frozen at random
            self._constant.clear()
        if self._mode not in self._constant:
            self._constant[self._mode] = _Constant(frozen=_frozen(self._models))
        return ModuleState.of(modules, self._constant[self._mode])

    def learn(self, state: ModuleState) -> None:
        """Find out what a step has left as it was in ``state``, the last one that was asked for."""
        self._constant[self._mode] = state.unchanged(self._constant[self._mode])

    @contextlib.contextmanager
    def step(self, *, learns: bool = True) -> Iterator[None]:
        """Restore buffers, attributes and torch's random state on the CPU where the block ends by an exception.

        Without ``learns`` the block runs no pass, so it does not show what steps change.
        """
        state = self.state()
        random_state = torch.random.get_rng_state()
        try:
            yield
        except BaseException:
            state.restore()
            torch.random.set_rng_state(random_state)
            raise
        if learns:
            self.learn(state)


@contextlib.contextmanager
def preserved_state(*models: nn.Module) -> Iterator[ModuleState]:
    """Put buffers and plain attributes back when the block ends, however it ends."""
    state = ModuleState.named(*models)
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


def _frozen(models: Iterable[nn.Module]) -> frozenset[tuple[int, str]]:
    """Return the keys of the parameters that count as buffers: see above. Those of FSDP are replaced in every pass."""
    parameters = all_parameters(models)
    frozen = [parameter for parameter in parameters if not parameter.requires_grad and _is_plain(parameter)]
    modules = all_modules(models)
    if not frozen or is_sharded(modules) or any(map(is_lazy, parameters)):  # those that are lazy are refused with a line
        return frozenset()
    room, found = sum(_bytes(parameter) for parameter in parameters if parameter.requires_grad), set()
    for parameter in sorted(frozen, key=_bytes):
        room -= _bytes(parameter)
        if room < 0:
            break
        found.add(id(parameter))
    named = ((parameters_of(module), name) for module in modules for name in parameters_of(module))
    return frozenset((id(holder), name) for holder, name in named if id(holder[name]) in found)


def _is_plain(parameter: Tensor) -> bool:
    return type(parameter.data) is Tensor and parameter.layout == torch.strided  # comparing a DTensor is a collective


def _bytes(parameter: Tensor) -> int:
    return parameter.numel() * parameter.element_size()  # nbytes is not defined for sparse tensors


def _state_of(module: nn.Module, frozen: frozenset[tuple[int, str]]) -> Iterator[tuple[dict[str, Any], str]]:
    yield from ((buffers_of(module), name) for name in buffers_of(module))
    if frozen:
        parameters = parameters_of(module)
        yield from ((parameters, name) for name in parameters if (id(parameters), name) in frozen)
    attributes = module.__dict__
    yield from ((attributes, name) for name in attributes if name not in OWN and isinstance(attributes[name], PLAIN))


def _remove(holder: dict[str, Any], kept: Collection[str]) -> None:
    """Remove what is not among the names ``kept``."""
    for name in [name for name in holder if name not in kept]:
        del holder[name]
