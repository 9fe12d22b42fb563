"""FSDP: share the memory of training among devices (`trainer=fsdp`).

Each process holds a shard of every layer. A layer's weights are gathered when it computes and freed afterwards, so in
training a device needs room for its shards, one whole layer and the activations. Before and after training a device
holds the whole model, as with any other trainer. Meanwhile the first process keeps the whole model in host memory; it
takes the trained weights back at the end and scores.
"""

from __future__ import annotations

import copy

import peft
import torch
from pytorch_lightning.strategies import ModelParallelStrategy
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from transformers import PreTrainedModel

from debias.models.ranks import launched_processes, launched_rank
from debias.models.targets import layers
from debias.records import UserError


def strategy() -> ModelParallelStrategy:
    """Lightning's strategy for `Debiaser.configure_model`. Raises UserError unless a launcher started the processes."""
    processes = launched_processes()
    if processes < 2:
        raise UserError(
            "trainer=fsdp shards the model across processes that a launcher has started: "
            "torchrun --nproc-per-node 2 -m debias run trainer=fsdp (or srun)"
        )
    return ModelParallelStrategy(processes, 1, save_distributed_checkpoint=False)


def sharded(model: peft.PeftModel, mesh: DeviceMesh) -> peft.PeftModel:
    """A copy of the model, sharded across the mesh. Raises UserError for quantised weights, which FSDP cannot shard."""
    base = _base_of(model)
    if getattr(base, "is_quantized", False):
        raise UserError("trainer=fsdp cannot shard quantised weights; remove model.quantization, or use trainer=ddp")
    # `fully_shard` replaces parameters in place, and the whole model must survive: shard a copy. The copy first shares
    # the layers' weights with the original (the memo of `deepcopy`), then each layer is copied and sharded in turn, so
    # that no more than one layer is in memory twice. A layer that has been sharded leaves the device. Only the first
    # process needs the whole model again; of the others' nothing but its shapes is kept.
    aside = torch.device("cpu" if launched_rank() == 0 else "meta")
    of_layers = (p for _, layer in layers(base) for p in layer.parameters())
    copied = copy.deepcopy(model, {id(p): p for p in of_layers})
    copied_base = _base_of(copied)
    for name, layer in list(layers(copied_base)):
        own = copy.deepcopy(layer, {id(b): b for b in layer.buffers()})
        copied_base.set_submodule(name, own)
        fully_shard(own, mesh=mesh)
        base.get_submodule(name).to(aside)
    fully_shard(copied, mesh=mesh)
    nn.Module.to(model, aside)
    return copied


def gathered(shards: peft.PeftModel, whole: peft.PeftModel) -> peft.PeftModel:
    """The whole model with the weights of its sharded copy, where that was. All processes must call this.

    Rank 0 gets the weights; the others get a model without any.
    """
    state = get_model_state_dict(shards, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if state:
        whole.load_state_dict(state)
        nn.Module.to(whole, next(shards.parameters()).device)
    return whole


def _base_of(model: peft.PeftModel) -> PreTrainedModel:
    base = model.get_base_model()
    assert isinstance(base, PreTrainedModel)
    return base
