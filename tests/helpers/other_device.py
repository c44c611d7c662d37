"""A device that rounds as CUDA does, on this one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_DIVISIONS = {torch.ops.aten.div.Tensor, torch.ops.aten.div_.Tensor}
_BAGS = {torch.ops.aten._embedding_bag.default, torch.ops.aten._embedding_bag_forward_only.default}


class OtherDevice(TorchDispatchMode):
    """Where torch's CUDA kernels round float32 otherwise than the CPU's, so does this.

    Division by a Python number is multiplication by its reciprocal, ``a + alpha * b`` rounds once,
    and the sums of ``embedding_bag`` have another order (here: float64, rounded at the end).
    ``seen`` counts the operations that went through.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        self.seen += 1
        float32 = isinstance(args[0], Tensor) and args[0].dtype == torch.float32 if args else False
        if not float32:
            return operation(*args, **kwargs)
        if operation in _DIVISIONS and not isinstance(args[1], Tensor):
            product = args[0] * torch.tensor(1 / args[1], dtype=torch.float32)
            return args[0].copy_(product) if operation is torch.ops.aten.div_.Tensor else product
        alpha = kwargs.get("alpha", 1)
        if alpha != 1 and (name := getattr(operation, "overloadpacket", None)) is not None:
            sign = {torch.ops.aten.add: 1, torch.ops.aten.sub: -1}[name]
            result = (args[0].double() + sign * alpha * args[1].double()).float()
            return kwargs["out"].copy_(result) if "out" in kwargs else result
        if operation in _BAGS:
            wide = [
                a.double() if isinstance(a, Tensor) and a.dtype == torch.float32 else a
                for a in args
            ]
            return tuple(
                t.float() if t.dtype == torch.float64 else t for t in operation(*wide, **kwargs)
            )
        return operation(*args, **kwargs)
