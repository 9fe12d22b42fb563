"""A model divided among processes (FSDP), for a base that no device can train whole.

Each process holds its part of every layer. A layer's weights come together when it computes and part again behind it,
so that a device needs room for the parts, one layer and what the layers hand on. Training alone is divided: the model
itself stays whole in the host's memory, takes the adapter back at the end, and is scored by the first process.
"""

from __future__ import annotations

import copy
from typing import Any

import peft
from pytorch_lightning.strategies import ModelParallelStrategy
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard

from debias.models.ranks import launched_processes
from debias.models.targets import layers
from debias.records import UserError


def strategy() -> ModelParallelStrategy:
    """Lightning's strategy for `Debiaser.configure_model`. Raises UserError where no launcher started the processes."""
    processes = launched_processes()
    if processes < 2:
        raise UserError(
            "trainer=fsdp divides the model among processes that a launcher has started: "
            "torchrun --nproc-per-node 2 -m debias run trainer=fsdp (or srun)"
        )
    return ModelParallelStrategy(processes, 1, save_distributed_checkpoint=False)


def sharded(model: peft.PeftModel, mesh: DeviceMesh) -> Any:
    """A copy of a model, divided among the devices of a mesh. Raises UserError where its options cannot be divided."""
    _check(model)
    of_layers = (p for _, layer in layers(model.get_base_model()) for p in layer.parameters())
    divided = copy.deepcopy(model, {id(p): p for p in of_layers})  # everything but the layers' weights
    inside = divided.get_base_model()
    for name, layer in list(layers(inside)):
        own = copy.deepcopy(layer, {id(b): b for b in layer.buffers()})  # one layer at a time is held twice
        inside.set_submodule(name, own)
        fully_shard(own, mesh=mesh)
    fully_shard(divided, mesh=mesh)
    return divided


def _check(model: peft.PeftModel) -> None:
    if getattr(model.get_base_model(), "is_quantized", False):
        raise UserError("trainer=fsdp cannot divide quantised weights; leave model.quantization out, or trainer=ddp")
    if getattr(model, "_compiled_call_impl", None) is not None:
        raise UserError("trainer=fsdp does not go with training.compile=true; leave one of them out")


def gathered(divided: Any, whole: peft.PeftModel) -> peft.PeftModel:
    """The whole model with all that its divided copy holds, base included; every process must take part.

    Only the first process gets the weights.
    """
    state = get_model_state_dict(divided, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if state:
        whole.load_state_dict(state)
    return whole
