"""What a batch is made of: find its number of samples, take some of them, move them.

A batch is a tensor or an array whose first dimension counts samples, a list of one thing a sample (strings, tensors of
different shapes), or a tuple, list, dictionary, other mapping, named tuple or dataclass of such. Numbers, strings and the
like beside them are passed on as they are. Tensors that all samples share have to be named.
"""

import enum
import numbers
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from bigstep.step.containers import find_tensors, map_tensors, parts_of, rebuilt

__all__ = ["BatchStructure", "check_usable"]

PLAIN = (str, bytes, numbers.Number, type(None), enum.Enum, torch.dtype, torch.device, torch.Size, slice)


@final
class BatchStructure:
    """How many samples inputs and targets have, and which parts of them are cut."""

    def __init__(
        self, inputs: Any, targets: Any, shared: Sequence[str | int] = (), list_kinds: set[bool] | None = None
    ) -> None:
        """Look at a batch; only shapes and lengths are read.

        Args:
            inputs: of the model.
            targets: of the loss.
            shared: keys or fields, or positions in a tuple, of those inputs that all samples share.
            list_kinds: whether lists of tensors in earlier batches had one item a sample; what this batch shows is added
                once a model has taken it.
                It decides where a list could be both, such as 3 images of shape ``(3, H, W)``.

        Raises:
            ValueError: the number of samples does not follow, or differs.
        """
        self.inputs, self.targets, self.shared = inputs, targets, tuple(shared)
        self._shared = frozenset(shared)
        self._known_kinds = frozenset(list_kinds or ())
        self._learned_kinds = set[bool]() if list_kinds is None else list_kinds
        self.num_samples = self._count()
        self._check(inputs, "inputs", top=True)
        self._check(targets, "targets")
        self._one_list = isinstance(inputs, list) and self._is_sample_list(inputs)
        self._kinds = frozenset(
            self._is_sample_list(item) for item in self._lists() if set(self._sizes_within(item)) and not self._is_both(item)
        )

    def take(self, part: slice | list[int], device: torch.device | None = None) -> tuple[Any, Any]:
        """Return inputs and targets of the samples ``part``, on ``device`` where one is given."""
        return self._take(self.inputs, part, device, top=True), self._take(self.targets, part, device)

    def take_targets(self, part: slice) -> Any:
        """Return the targets of the samples ``part``."""
        return self._take(self.targets, part, None)

    def call(self, model: torch.nn.Module, inputs: Any) -> Any:
        """Call with one tensor, the items of a tuple, the keywords of a mapping, or a list of samples as it is."""
        if isinstance(inputs, Mapping):
            result = model(**inputs)
        else:
            result = model(*inputs) if isinstance(inputs, (tuple, list)) and not self._one_list else model(inputs)
        self._learned_kinds |= self._kinds  # the model takes what it was given
        return result

    def _take(self, batch: Any, part: slice | list[int], device: torch.device | None, *, top: bool = False) -> Any:
        if isinstance(batch, Tensor):
            return _moved(_rows(batch, part), device)
        if _is_array(batch):
            return batch[part]
        if isinstance(batch, (list, tuple)) and self._is_sample_list(batch):
            samples = batch[part] if isinstance(part, slice) else [batch[index] for index in part]
            return _all_moved(type(batch)(samples), device)
        parts = parts_of(batch)
        if parts is None:
            return batch
        items = {
            key: _all_moved(item, device) if self._is_shared(key, top=top) else self._take(item, part, device)
            for key, item in parts
        }
        return rebuilt(batch, items)

    def _is_shared(self, key: Any, *, top: bool) -> bool:
        return key in self._shared and (top or isinstance(key, str))

    def _count(self) -> int:
        direct = {*self._direct_sizes(self.inputs, top=True), *self._direct_sizes(self.targets)}
        if not direct:
            lists = list(self._lists())
            within = [set(self._sizes_within(item)) for item in lists]
            lengths = {len(item) for item in lists if item} or {0}
            has_plain = any(item and not sizes for item, sizes in zip(lists, within, strict=True))
            sizes = set[int]().union(*within)
            are_samples = has_plain or -1 in sizes or self._known_kinds == {True}
            direct = lengths if len(sizes) != 1 or (are_samples and len(lengths) == 1) else sizes
        if len(direct) != 1:
            raise ValueError(
                f"batch: expected inputs and targets of the same number of samples, got {sorted(direct)}; make their first "
                "dimensions equal, and name what all samples share in shared="
            )
        return direct.pop()

    def _direct_sizes(self, batch: Any, *, top: bool = False) -> Iterator[int]:
        """Return the first dimensions of tensors and arrays that are in no list."""
        if isinstance(batch, Tensor) or _is_array(batch):
            yield _first_dimension(batch)
        elif not isinstance(batch, list):
            for key, item in parts_of(batch) or ():
                if not self._is_shared(key, top=top):
                    yield from self._direct_sizes(item)

    def _sizes_within(self, batch: Any) -> Iterator[int]:
        if isinstance(batch, Tensor) or _is_array(batch):
            yield batch.shape[0] if batch.ndim else -1
        for _, item in parts_of(batch) or ():
            yield from self._sizes_within(item)

    def _is_sample_list(self, batch: list[Any] | tuple[Any, ...]) -> bool:
        """Return whether a list has one item a sample, rather than tensors of all samples."""
        if len(batch) != self.num_samples or hasattr(batch, "_fields"):
            return False
        if isinstance(batch, tuple):
            return bool(batch) and all(isinstance(item, (str, bytes)) for item in batch)
        return self._known_kinds == {True} if self._is_both(batch) else set(self._sizes_within(batch)) != {self.num_samples}

    def _is_both(self, batch: Any) -> bool:
        """Return whether a list could be one item a sample, and tensors of all samples as well."""
        return len(batch) == self.num_samples and set(self._sizes_within(batch)) == {self.num_samples}

    def _lists(self) -> Iterator[list[Any]]:
        """Return the lists that are in no other list, without what all samples share."""
        yield from self._lists_in(self.inputs, top=True)
        yield from self._lists_in(self.targets)

    def _lists_in(self, batch: Any, *, top: bool = False) -> Iterator[list[Any]]:
        if isinstance(batch, list):
            yield batch
            return
        for key, item in parts_of(batch) or ():
            if not self._is_shared(key, top=top):
                yield from self._lists_in(item)

    def _check(self, batch: Any, name: str, *, top: bool = False) -> None:
        """Refuse what would be cut wrongly or not at all."""
        if isinstance(batch, PackedSequence) or (isinstance(batch, Tensor) and batch.is_nested):
            raise ValueError(
                f"{name}: expected samples that can be cut, got a {type(batch).__name__}; pad the sequences instead"
            )
        if isinstance(batch, list) and self._is_both(batch) and len(self._known_kinds) != 1:
            raise ValueError(
                f"{name}: expected a list of one item per sample or of tensors of all samples, got one that could be both, "
                f"{len(batch)} tensors of {self.num_samples} rows; use a tuple for tensors of all samples, or stack the items"
            )
        if isinstance(batch, (list, tuple)) and self._is_sample_list(batch):
            return
        parts = parts_of(batch)
        if parts is None:
            self._check_leaf(batch, name)
            return
        for key, item in parts:
            if not self._is_shared(key, top=top):
                self._check(item, name)
        if isinstance(batch, list) and batch and not any(True for _ in self._direct_sizes(tuple(batch))):
            raise ValueError(
                f"{name}: expected a list of one item per sample ({self.num_samples}), got {len(batch)} items; "
                "make them equal, or name what all samples share in shared="
            )

    def _check_leaf(self, value: Any, name: str) -> None:
        if isinstance(value, Tensor) or _is_array(value):
            if _first_dimension(value) != self.num_samples:
                raise ValueError(
                    f"{name}: expected tensors of {self.num_samples} samples, got {_first_dimension(value)}; make their first "
                    "dimensions equal, and name what all samples share in shared="
                )
        elif not isinstance(value, PLAIN) and not callable(value):
            raise ValueError(
                f"{name}: expected tensors, arrays, lists, mappings or dataclasses of them, got a {type(value).__name__}, "
                "which cannot be cut; convert it, or name it in shared="
            )


def check_usable(parameters: Iterable[Tensor], batch: BatchStructure) -> None:
    """Refuse parameters that do not exist yet, and inputs or targets that a backward pass would run beyond.

    Raises:
        ValueError: there is such a one.
    """
    if any(isinstance(parameter, torch.nn.parameter.UninitializedParameter) for parameter in parameters):
        raise ValueError(
            "model: expected initialised parameters, got a lazy module that has not run yet; run it on a sample before"
        )
    for tensor in find_tensors((batch.inputs, batch.targets)):
        if tensor.grad_fn is not None:
            raise ValueError(
                f"inputs and targets: expected tensors without a graph behind them, got the result of {tensor.grad_fn.name()}; "
                "put the layers that computed it into the model, or detach it"
            )


def _first_dimension(value: Any) -> int:
    if value.ndim == 0:
        raise ValueError(
            "batch: expected tensors whose first dimension counts samples, got one of no dimension; "
            "name what all samples share in shared="
        )
    return int(value.shape[0])


def _rows(tensor: Tensor, part: slice | list[int]) -> Tensor:
    if tensor.layout == torch.strided:
        return tensor[part]
    rows = range(len(tensor))[part] if isinstance(part, slice) else part
    return tensor.index_select(0, torch.tensor(list(rows), device=tensor.device))  # sparse tensors take no slices


def _moved(tensor: Tensor, device: torch.device | None) -> Tensor:
    return tensor if device is None else tensor.to(device, non_blocking=True)


def _all_moved(batch: Any, device: torch.device | None) -> Any:
    return map_tensors(lambda tensor: _moved(tensor, device), batch)


def _is_array(value: Any) -> bool:
    return hasattr(value, "__array_interface__") and hasattr(value, "ndim")
