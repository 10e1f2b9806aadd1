"""Export to a Hugging Face folder that `from_pretrained` loads, one module gathered at a time.

Every rank takes part (stage 3 gathers are collective); rank 0 writes safetensors shards, index and config, and never
holds more than one safetensors file's tensors.
"""

import contextlib
import json
from pathlib import Path
from typing import Any

import deepspeed
import torch
from safetensors.torch import save_file

from unlearn_core.zero.engine import ZeroEngine

MAX_FILE_BYTES = 2 * 2**30


def export_weights(engine: ZeroEngine, folder: Path) -> None:
    """Write the weights that forward passes use, and the model's config, into `folder` (rank 0; it must exist there).

    Every rank must call it. Tied parameters are written once, under the name `named_parameters` gives them; persistent
    buffers are written too.

    Args:
        engine: the run's engine, any stage.
        folder: existing folder; only rank 0 touches it.
    """
    module, writes = engine.module, engine.rank == 0
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    files = _plan(module)
    index: dict[str, str] = {}
    total = 0
    for number, groups in enumerate(files, start=1):
        file_name = "model.safetensors" if len(files) == 1 else f"model-{number:05d}-of-{len(files):05d}.safetensors"
        tensors: dict[str, torch.Tensor] = {}
        for parameters in groups:
            with _whole(engine, parameters):
                if writes:
                    for parameter in parameters:
                        tensors[names[id(parameter)]] = parameter.detach().to("cpu", copy=True).contiguous()
        if writes:
            if number == 1:
                tensors |= _persistent_buffers(module)
            save_file(tensors, folder / file_name, metadata={"format": "pt"})
            index.update(dict.fromkeys(tensors, file_name))
            total += sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    if writes:
        if len(files) > 1:
            listing = {"metadata": {"total_size": total}, "weight_map": index}
            (folder / "model.safetensors.index.json").write_text(json.dumps(listing, indent=2), encoding="utf-8")
        config = module.config.__class__.from_dict(module.config.to_dict())
        config.dtype = torch.bfloat16 if engine.bf16 else torch.float32
        config.use_cache = True
        config.architectures = [type(module).__name__]
        config.save_pretrained(folder)
        if getattr(module, "generation_config", None) is not None:
            module.generation_config.save_pretrained(folder)


def _size(parameter: Any) -> int:
    """Bytes of the whole parameter; under stage 3 the local tensor is a placeholder and `ds_numel` tells."""
    return getattr(parameter, "ds_numel", parameter.numel()) * parameter.element_size()


def _plan(module: torch.nn.Module) -> list[list[list[torch.nn.Parameter]]]:
    """Files -> groups of parameters gathered together; each parameter once, file sizes at most MAX_FILE_BYTES."""
    files: list[list[list[torch.nn.Parameter]]] = [[]]
    seen: set[int] = set()
    size = 0
    for child in module.modules():
        parameters = [parameter for parameter in child.parameters(recurse=False) if id(parameter) not in seen]
        seen.update(map(id, parameters))
        if not parameters:
            continue
        group_size = sum(map(_size, parameters))
        if files[-1] and size + group_size > MAX_FILE_BYTES:
            files.append([])
            size = 0
        files[-1].append(parameters)
        size += group_size
    return files


def _whole(engine: ZeroEngine, parameters: list[torch.nn.Parameter]) -> contextlib.AbstractContextManager[Any]:
    if engine.engine.zero_optimization_stage() == 3:
        return deepspeed.zero.GatheredParameters(parameters)
    return contextlib.nullcontext()


def _persistent_buffers(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Buffers that `state_dict` would keep (non-persistent ones, such as rotary tables, are left out)."""
    buffers: dict[str, torch.Tensor] = {}
    for prefix, child in module.named_modules():
        for name, buffer in child.named_buffers(recurse=False):
            if name not in child._non_persistent_buffers_set:
                buffers[f"{prefix}.{name}".lstrip(".")] = buffer.detach().to("cpu", copy=True).contiguous()
    return buffers
