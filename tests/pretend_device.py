"""A device that is not there: its tensors compute on the CPU and refuse to meet the host's, as on CUDA.

A tensor on it (`OnDevice`) wraps a CPU tensor and says that it lies on `DEVICE`. What mixes it with a host's
tensor of one dimension or more raises, and so does `numpy()`; scalars, indices and copies may cross. Code
that runs here keeps its tensors where they belong; and as the arithmetic is the CPU's, so are its results.

`DEVICE` is torch's "meta", whose tensors pass the autograd engine without a backend of their own. What this
cannot show: kernels, streams, half precision, memory, and code that asks for "cuda" by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("meta")
_aten = torch.ops.aten
_INDEXING = {
    _aten.index.Tensor,
    _aten.index_put.default,
    _aten.index_put_.default,
    _aten._index_put_impl_.default,
    _aten._unsafe_index.Tensor,
}
"""Where indices may lie on the host."""
_COPYING = {_aten._to_copy.default, _aten.copy_.default}


class OnDevice(torch.Tensor):
    """A tensor on the device; `host` is where its numbers are."""

    host: torch.Tensor

    @staticmethod
    def __new__(cls, host: torch.Tensor) -> OnDevice:
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            host.size(),
            strides=host.stride(),
            storage_offset=host.storage_offset(),
            dtype=host.dtype,
            device=DEVICE,
        )
        made.host = host
        return made

    def __repr__(self, **_: Any) -> str:
        return f"OnDevice({self.host!r})"

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(function, args, kwargs or {})


def _run(function: Any, args: Any, kwargs: Mapping[str, Any]) -> Any:
    """The operation on the CPU; its result is on the device where an operand or the `device` asked for is."""
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    ours = [tensor for tensor in tensors if isinstance(tensor, OnDevice)]
    others = [tensor for tensor in tensors if not isinstance(tensor, OnDevice)]
    assert all(tensor.device.type == "cpu" for tensor in others), "a tensor without numbers has come in"
    if ours and function not in _COPYING:
        indices = others if function in _INDEXING and isinstance(args[0], OnDevice) else []
        met = [tuple(t.shape) for t in others if t.dim() and not any(t is index for index in indices)]
        if met:
            raise RuntimeError(
                f"{function}: tensors of the shapes {met} are on the host, others on the device"
            )
    stays = bool(ours)
    if kwargs.get("device") is not None:
        stays = is_ours(kwargs["device"])
        kwargs = {
            **kwargs,
            "device": torch.device("cpu"),
            **({"pin_memory": None} if "pin_memory" in kwargs else {}),
        }
    elif function is _aten.copy_.default:
        stays = isinstance(args[0], OnDevice)
    result = function(*tree_map(_host, args), **tree_map(_host, kwargs))
    if not stays or function is _aten._local_scalar_dense.default:
        return result
    in_place = {id(tensor.host): tensor for tensor in ours}
    return tree_map(lambda leaf: in_place[id(leaf)] if id(leaf) in in_place else _on_device(leaf), result)


def _host(leaf: Any) -> Any:
    return leaf.host if isinstance(leaf, OnDevice) else leaf


def _on_device(leaf: Any) -> Any:
    return OnDevice(leaf) if isinstance(leaf, torch.Tensor) else leaf


def is_ours(device: Any) -> bool:
    """Whether a device, as torch takes one, is this one."""
    return device is not None and torch.device(device).type == DEVICE.type


class _Made(TorchDispatchMode):
    """Tensors that are made on the device, or moved to it."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        ours = any(isinstance(leaf, OnDevice) for leaf in tree_leaves((args, kwargs)))
        return (
            _run(function, args, kwargs)
            if ours or is_ours(kwargs.get("device"))
            else function(*args, **kwargs)
        )


class _Spoken(TorchFunctionMode):
    """What torch does before it dispatches, for lists, Python numbers and attention."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        first = args[0] if args else None
        if function in (torch.tensor, torch.as_tensor) and is_ours(kwargs.get("device")):
            if isinstance(first, OnDevice):
                return first.to(kwargs.get("dtype") or first.dtype)
            return OnDevice(function(*args, **{**kwargs, "device": "cpu"}))
        if not isinstance(first, OnDevice):
            return function(*args, **kwargs)
        if function is torch.Tensor.tolist:
            return first.host.tolist()
        if function in (torch.Tensor.numpy, torch.Tensor.__array__):
            raise TypeError("a tensor on the device is no array: bring it to the host first")
        if function in (torch.Tensor.__getitem__, torch.Tensor.__setitem__):
            places = args[1] if isinstance(args[1], tuple) else (args[1],)
            places = tuple(OnDevice(torch.tensor(p)) if isinstance(p, list) else p for p in places)
            args = (first, places, *args[2:])
        if function is F.scaled_dot_product_attention:  # it picks a kernel by the device
            mask = kwargs.get("attn_mask")
            if mask is not None and mask.dtype is torch.bool:
                forbidden = torch.zeros_like(mask, dtype=first.dtype)
                kwargs["attn_mask"] = forbidden.masked_fill(mask.logical_not(), -float("inf"))
            return _aten._scaled_dot_product_attention_math(*args, **kwargs)[0]
        return function(*args, **kwargs)


@contextmanager
def pretend_device() -> Iterator[None]:
    """The device is there; `Module.to` moves a model to it, its tied weights with it."""
    move, autocast = torch.nn.Module.to, torch.is_autocast_enabled

    def moved(module: torch.nn.Module, *args: Any, **kwargs: Any) -> torch.nn.Module:
        made = move(module, *args, **kwargs)
        tie: Callable[[], None] | None = getattr(made, "tie_weights", None)
        if tie is not None:  # weights of another type are new ones, and what was one would be two
            tie()
        return made

    torch.nn.Module.to = moved
    torch.is_autocast_enabled = lambda *device: not is_ours(next(iter(device), None)) and autocast(*device)
    try:
        with _Made(), _Spoken():
            yield
    finally:
        torch.nn.Module.to, torch.is_autocast_enabled = move, autocast
