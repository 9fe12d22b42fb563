"""Two GPUs that are not there: tensors lie in the CPU's memory, with a note of the device that they should be on.

Whatever computes with tensors of two devices fails, as it does on real ones. So code that forgets to move something is
found on a machine without a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate
from typing import Any
from unittest.mock import patch

import torch
from accelerate import dispatch_model
from torch import Tensor
from torch.autograd.function import BackwardCFunction
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils import checkpoint
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from debias.models import targets

CPU = torch.device("cpu")
FIRST, SECOND = torch.device("cuda", 0), torch.device("cuda", 1)
# As on a GPU: these take tensors of several devices, and an index may lie on the CPU.
MIXED = ("copy_", "_to_copy", "_foreach", "set_", "detach")
INDEXED = ("index.Tensor", "index_put")


class _Places:
    """The device of every storage that has been given one; a weak reference keeps its number from being used again."""

    def __init__(self) -> None:
        self.known: dict[int, tuple[StorageWeakRef, torch.device]] = {}

    def of(self, tensor: Tensor) -> torch.device:
        with torch._C.DisableTorchFunction():
            if tensor.is_meta:
                return torch.device("meta")
            return self.known.get(tensor.untyped_storage()._cdata, (None, CPU))[1]

    def put(self, tensor: Tensor, device: torch.device) -> None:
        with torch._C.DisableTorchFunction():
            if not tensor.is_meta:
                storage = tensor.untyped_storage()
                self.known[storage._cdata] = StorageWeakRef(storage), device


class _Checked(TorchDispatchMode):
    """Refuses operations on tensors of several devices, and notes where their results are."""

    def __init__(self, places: _Places) -> None:
        super().__init__()
        self.places = places

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func).partition(".")[2]
        read = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        told = read[:1] if name.startswith(INDEXED) else read
        devices = {self.places.of(t) for t in told if t.ndim} or {self.places.of(t) for t in told}
        if name.startswith(INDEXED):
            allowed = {*devices, CPU}
            wrong = {self.places.of(t) for t in read} - allowed
        else:
            wrong = devices if len(devices) > 1 else {self.places.of(t) for t in told} - {*devices, CPU}
        if wrong and not name.startswith(MIXED):
            raise RuntimeError(f"{func}: expected all tensors to be on the same device, but found {devices | wrong}")
        shared = {t.untyped_storage()._cdata for t in read}
        out = func(*args, **(kwargs or {}))
        if name.startswith("_foreach"):
            for made, of in zip(out or (), args[0], strict=False):
                self.places.put(made, self.places.of(of))
            return out
        for made in tree_leaves(out):
            if isinstance(made, Tensor) and made.untyped_storage()._cdata not in shared:
                self.places.put(made, self.places.of(args[0]) if name.startswith(MIXED) else next(iter(devices), CPU))
        return out


class _Move(torch.autograd.Function):
    """A copy on another device; the gradient comes back."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, places: _Places, device: torch.device) -> Tensor:
        ctx.places, ctx.before = places, places.of(tensor)
        moved = tensor.clone()
        places.put(moved, device)
        return moved

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        moved = grads[0].clone()
        ctx.places.put(moved, ctx.before)
        return moved, None, None


class _Told(TorchFunctionMode):
    """Answers and obeys `.device`, `.to(device)` and `device=`."""

    def __init__(self, places: _Places) -> None:
        super().__init__()
        self.places = places

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func == Tensor.device.__get__:
            return self.places.of(args[0])
        if func == Tensor.is_cuda.__get__:
            return self.places.of(args[0]).type == "cuda"
        if func in (Tensor.numpy, Tensor.__array__) and self.places.of(args[0]) != CPU:
            raise TypeError(f"{self.places.of(args[0])} tensor is not in host memory; use .cpu()")
        if func is Tensor.cpu:
            return self._moved(args[0], CPU)
        if func is Tensor.to:
            return self._to(*args, **kwargs)
        if func is Tensor.__deepcopy__:
            copied = func(*args, **kwargs)
            self.places.put(copied, self.places.of(args[0]))
            return copied
        if kwargs.get("device") is not None:
            device = torch.device(kwargs["device"])
            if device.type == "cuda":
                made = func(*args, **{**kwargs, "device": CPU})
                self.places.put(made, device)
                return made
            if isinstance(args[0] if args else None, Tensor):  # such as new_zeros(device="cpu")
                made = func(*args, **kwargs)
                self.places.put(made, device)
                return made
        return func(*args, **kwargs)

    def _moved(self, tensor: Tensor, device: torch.device) -> Tensor:
        device = FIRST if device == torch.device("cuda") else device
        if self.places.of(tensor) == device:
            return tensor
        if device.type == "meta" or tensor.is_meta:
            return tensor.to(device)
        return _Move.apply(tensor, self.places, device)

    def _to(self, tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if args and isinstance(args[0], Tensor):
            other, *args = args
            kwargs |= {"device": self.places.of(other), "dtype": other.dtype}
        keep = {key: kwargs.pop(key) for key in ("copy",) if key in kwargs}
        device, dtype, *_ = torch._C._nn._parse_to(*args, **kwargs)
        if device is not None:
            if device.type == "meta":
                return tensor.to(*args, **kwargs)
            tensor = self._moved(tensor, device)
        return tensor.to(dtype, **keep) if dtype is not None else tensor


@contextmanager
def two_gpus() -> Iterator[_Places]:
    """In the block, `cuda:0` and `cuda:1` are devices."""
    places = _Places()
    told = _Told(places)
    backward = BackwardCFunction.apply

    def apply(function: Any, *grads: Any) -> Any:
        with told:  # autograd turns modes like this one off before it calls a backward pass in Python
            return backward(function, *grads)

    def again(function: Any, *args: Any) -> Any:
        with told:  # and before gradient checkpointing computes a layer again
            return recompute(function, *args)

    recompute = checkpoint._run_fn_with_dynamo_disabled
    recomputes = patch.object(checkpoint, "_run_fn_with_dynamo_disabled", again)
    with _Checked(places), told, patch.object(BackwardCFunction, "apply", apply), recomputes:
        yield places


def spread(model: Any) -> Any:
    """A model over both GPUs, cut between two layers; what is tied is on the first. Call it in the block."""
    layers = [name for name, _ in targets.layers(model)]
    first: dict[int, str] = {}  # tensor -> where it was met first
    places: dict[str, str] = {}  # module -> where it is
    place = "cuda:0"
    for name, tensor in [*model.named_parameters(remove_duplicate=False), *model.named_buffers()]:
        outer = accumulate(name.split("."), "{}.{}".format)
        module = next(o for o in outer if o in layers or not any(layer.startswith(f"{o}.") for layer in layers))
        place = "cuda:1" if module == layers[len(layers) // 2] else place
        places[module] = min(places.get(module, place), first.setdefault(id(tensor), place))
    assert {places[layers[0]], places[layers[-1]]} == {"cuda:0", "cuda:1"}
    return dispatch_model(model, places, FIRST, skip_keys=model._skip_keys_device_placement)
