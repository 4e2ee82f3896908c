"""What an engine holds right now, in bytes by part; counts storages, so views count once."""

from collections.abc import Iterable, Iterator
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from ..engine import Engine


def weights(engine: Engine) -> dict[str, int]:
    """Bytes of frozen and of trained weights on this rank."""
    frozen: list[Tensor] = []
    trained: list[Tensor] = []
    for parameter in engine.engine.module.parameters():
        here = getattr(parameter, "ds_tensor", parameter)  # ZeRO 3: this rank's part
        (trained if parameter.requires_grad else frozen).append(here)
    return {"frozen": storage_bytes(frozen), "trained": storage_bytes(trained)}


def gradients(engine: Engine) -> int:
    """Bytes of gradients, as they are between the backward pass and the update."""
    optimizer = engine.optimizer
    found = [p.grad for p in engine.engine.module.parameters() if p.grad is not None]
    for group in dict(getattr(optimizer, "averaged_gradients", {})).values():
        found += [grad for grad in group or () if isinstance(grad, Tensor)]
    flat = getattr(optimizer, "grad_partitions_flat_buffer", None)
    return storage_bytes([*found, *([] if flat is None else [flat])])


def optimiser(engine: Engine) -> int:
    """Bytes of Adam's moments, and of float32 weights that are not the model's own."""
    adam = getattr(engine.optimizer, "optimizer", engine.optimizer)
    own = {_storage(p) for p in engine.engine.module.parameters()}
    # ZeRO empties Adam's list of parameters between updates, but keeps its copies here.
    copies = [
        *(p for group in adam.param_groups for p in group["params"]),
        *getattr(engine.optimizer, "single_partition_of_fp32_groups", ()),
        *getattr(engine.optimizer, "fp32_partitioned_groups_flat", ()),
    ]
    moments = [value for state in adam.state.values() for value in state.values()]
    held = [t for t in (*copies, *moments) if isinstance(t, Tensor) and t.ndim]
    return storage_bytes([t for t in held if _storage(t) not in own])


def storage_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of the distinct storages behind tensors."""
    sizes = {_storage(tensor): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(sizes.values())


def tensors_of(held: Any) -> Iterator[Tensor]:
    """Every tensor inside nested dataclasses."""
    if isinstance(held, Tensor):
        yield held
    elif is_dataclass(held):
        for field in fields(held):
            yield from tensors_of(getattr(held, field.name))


class Kept:
    """While entered, counts what autograd keeps for the backward pass, parameters left out.

    The one way to measure activations on a CPU, whose allocator keeps no count. What is
    recomputed is not seen: with checkpointing, layer inputs are held by other means.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self._own = {_storage(tensor) for tensor in (*model.parameters(), *model.buffers())}
        self._seen: dict[int, Tensor] = {}
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._keep, lambda tensor: tensor)
        self.bytes = 0

    def __enter__(self) -> "Kept":
        self._hooks.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._hooks.__exit__(*error)
        self.bytes = storage_bytes(self._seen.values())
        self._seen.clear()

    def _keep(self, tensor: Tensor) -> Tensor:
        if _storage(tensor) not in self._own:
            # Held until the end, so that no other tensor can take its address.
            self._seen.setdefault(_storage(tensor), tensor)
        return tensor


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
