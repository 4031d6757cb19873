"""A device that is not the CPU, made of the CPU: it computes the same, refuses tensors that lie on the CPU, as a GPU
does, and notes whenever Python waits for it.

PyTorch has one place in a process for a device of one's own, so what imports this should be a process of its own.
"""

from __future__ import annotations

import functools
import traceback
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

ATEN = torch.ops.aten
VALUE, SHAPE = torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape
# Operations that no argument brings here: they make tensors, or were asked for where subclasses are not listened to.
ON_THE_DEVICE = ("empty.memory_format", "empty_strided", "copy_", "as_strided", "fill_.Scalar", "zero_")


class _Backend:
    """What PyTorch asks of a kind of device."""

    def is_initialized(self) -> bool:
        return True

    def is_available(self) -> bool:
        return True

    def current_device(self) -> int:
        return 0

    def device_count(self) -> int:
        return 1

    def _is_in_bad_fork(self) -> bool:
        return False

    def manual_seed_all(self, seed: int) -> None:
        pass

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]


_setup_privateuseone_for_python_backend("elsewhere", _Backend())
ELSEWHERE = torch.device("elsewhere", 0)

waits: list[str] = []
"""Each time Python waited for the device: what for, and where in the code."""


class Remote(Tensor):
    """A tensor on the device.

    Attributes:
        values: of it, on the CPU.
    """

    values: Tensor  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, values: Tensor) -> Remote:
        made: Remote = Tensor._make_wrapper_subclass(
            cls,
            values.shape,
            strides=values.stride(),
            storage_offset=values.storage_offset(),
            dtype=values.dtype,
            device=ELSEWHERE,
        )
        made.values = values  # type: ignore[method-assign]
        return made

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Remote({self.values})"

    def untyped_storage(self) -> Any:
        return self.values.untyped_storage()

    def tolist(self) -> Any:
        _waited("tolist")
        return self.values.tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _compute(func, *args, **(kwargs or {}))


def _compute(func: Any, *args: Any, **kwargs: Any) -> Any:
    """One operation on the device, or between it and the CPU.

    Raises:
        RuntimeError: tensors of both, where the operation is no copy.
    """
    tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
    # A single number may come from anywhere, as on a GPU.
    if any(t.ndim for t in tensors if not isinstance(t, Remote)):
        if func is not ATEN.copy_.default:
            raise RuntimeError(f"{func}: expected tensors on {ELSEWHERE}, got some on the CPU")
        _waited("a copy between devices")
    if _reads_values(func, args):
        _waited(str(func))
    leaves = "device" in kwargs and torch.device(kwargs["device"]).type == "cpu"
    if leaves:
        _waited("a copy to the CPU")
    found = func(*_values(args), **_values(kwargs | {"device": "cpu"} if "device" in kwargs else kwargs))
    # What was written in place is the tensor it was.
    given = {id(_values(t)): t for t in tensors}
    return tree_map(lambda t: t if leaves or not isinstance(t, Tensor) else given.get(id(t), Remote(t)), found)


def _values(tree: Any) -> Any:
    return tree_map(lambda t: t.values if isinstance(t, Remote) else t, tree)


def _reads_values(func: Any, args: Any) -> bool:
    if func is ATEN.index.Tensor:  # rows by number have a shape that is known, those of a mask have not
        return any(index is not None and index.dtype in {torch.bool, torch.uint8} for index in args[1])
    return VALUE in func.tags or SHAPE in func.tags


def _waited(what: str) -> None:
    ours = [f for f in traceback.extract_stack() if "/benchmark/" in f.filename or "/strategies/" in f.filename]
    waits.append(f"{what}, {ours[-1].filename}:{ours[-1].lineno}" if ours else what)


_LIBRARY = torch.library.Library("aten", "IMPL")
for _name in ON_THE_DEVICE:
    _operation, _, _overload = _name.partition(".")
    _func = getattr(getattr(ATEN, _operation), _overload or "default")
    _LIBRARY.impl(_name, functools.partial(_compute, _func), "PrivateUse1")
