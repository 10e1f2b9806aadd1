"""Load a model for training without a copy of it in host memory.

    stage 3         DeepSpeed partitions a model that nobody has written to, one parameter at a time; then each rank
                    reads its own slices of the safetensors files
    stages 0 to 2   the model is laid out on the rank's device and filled from the files, one tensor at a time

So a host holds one tensor a rank beside what belongs to the devices, however many ranks it has. A folder whose tensors
do not have the model's names and shapes (transformers renames or joins some when it loads) is loaded whole.
"""

import os
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from transformers import PreTrainedModel

from unlearn_core.config import RunConfig
from unlearn_core.edits.streamed_weights import StreamedWeights
from unlearn_core.models import build_empty, check_model_source, load_model
from unlearn_core.zero.engine import deepspeed_config


def load_for_training(config: RunConfig) -> PreTrainedModel:
    """The run's start model: whole on this rank's device, or at stage 3 this rank's part of it. Every rank calls it.

    Raises:
        UserError: as `unlearn_core.models.load_model`.
    """
    path, dtype, attention = config.model.path, config.model.dtype, config.model.attention
    check_model_source(path)
    weights = StreamedWeights(path)
    model: Any = build_empty(path, dtype, attention)
    if not _fits(model, weights):
        return load_model(path, dtype, attention)
    partitioned = config.zero.stage == 3
    if partitioned:
        deepspeed.zero.Init(
            module=model, config_dict_or_path=deepspeed_config(config.zero, dtype == "bf16", config.batch.micro)
        )
    else:
        accelerator: Any = deepspeed.get_accelerator()
        model.to(accelerator.device_name(int(os.environ.get("LOCAL_RANK", "0"))))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            _fill(parameter, weights, name, partitioned)
        for name, buffer in _saved_buffers(model).items():
            buffer.copy_(weights.tensor(name))
    return model


def _fill(parameter: Any, weights: StreamedWeights, name: str, partitioned: bool) -> None:
    if not partitioned:
        parameter.copy_(weights.tensor(name))
        return
    part = parameter.ds_tensor
    start = dist.get_rank() * part.numel()
    length = max(0, min(part.numel(), parameter.ds_numel - start))
    if length:
        part.view(-1)[:length].copy_(weights.elements(name, start, start + length))
    part.view(-1)[length:].zero_()  # what fills the last rank's part up


def _fits(model: PreTrainedModel, weights: StreamedWeights) -> bool:
    """Whether every parameter and saved buffer is in the files, under its name and in its shape."""
    wanted = {**dict(model.named_parameters()), **_saved_buffers(model)}
    names = set(weights.names)
    return all(name in names and weights.shape(name) == tuple(tensor.shape) for name, tensor in wanted.items())


def _saved_buffers(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    found = {}
    for prefix, child in model.named_modules():
        for name, buffer in child.named_buffers(recurse=False):
            if name not in child._non_persistent_buffers_set:
                found[f"{prefix}.{name}".lstrip(".")] = buffer
    return found
