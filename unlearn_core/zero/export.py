"""Export to a Hugging Face folder that `from_pretrained` loads, one module gathered at a time.

Every rank takes part (stage 3 gathers are collective); rank 0 writes safetensors shards, index and config, and never
holds more than one safetensors file's tensors. LoRA adapters are merged on the way: the folder holds plain weights.
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
    names = {id(parameter): _plain_name(name) for name, parameter in module.named_parameters()}
    adapters = {id(child.base_layer.weight): child for child in module.modules() if _is_adapted(child)}
    plain = module.get_base_model() if adapters else module
    files = _plan(module)
    index: dict[str, str] = {}
    total = 0
    for number, groups in enumerate(files, start=1):
        file_name = "model.safetensors" if len(files) == 1 else f"model-{number:05d}-of-{len(files):05d}.safetensors"
        tensors: dict[str, torch.Tensor] = {}
        for parameters in groups:
            engine.progress()
            with _whole(engine, parameters):
                for parameter in parameters if writes else ():
                    if id(parameter) in adapters:
                        tensors[names[id(parameter)]] = _merged(adapters[id(parameter)])
                    elif not _is_adapter_part(names[id(parameter)]):
                        tensors[names[id(parameter)]] = parameter.detach().to("cpu", copy=True).contiguous()
        if writes:
            if number == 1:
                tensors |= _persistent_buffers(plain)
            save_file(tensors, folder / file_name, metadata={"format": "pt"})
            index.update(dict.fromkeys(tensors, file_name))
            total += sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    if writes:
        if len(files) > 1:
            listing = {"metadata": {"total_size": total}, "weight_map": index}
            (folder / "model.safetensors.index.json").write_text(json.dumps(listing, indent=2), encoding="utf-8")
        config = plain.config.__class__.from_dict(plain.config.to_dict())
        config.dtype = torch.bfloat16 if engine.bf16 else torch.float32
        config.use_cache = True
        config.architectures = [type(plain).__name__]
        config.save_pretrained(folder)
        if getattr(plain, "generation_config", None) is not None:
            plain.generation_config.save_pretrained(folder)


def _size(parameter: Any) -> int:
    """Bytes of the whole parameter; under stage 3 the local tensor is a placeholder and `ds_numel` tells."""
    return getattr(parameter, "ds_numel", parameter.numel()) * parameter.element_size()


def _plan(module: torch.nn.Module) -> list[list[list[torch.nn.Parameter]]]:
    """Files -> groups of parameters gathered together; each parameter once, file sizes at most MAX_FILE_BYTES."""
    files: list[list[list[torch.nn.Parameter]]] = [[]]
    seen: set[int] = set()
    size = 0
    for child in module.modules():
        # An adapted layer's weight and adapters are gathered together, to be merged.
        below = _is_adapted(child)
        parameters = [parameter for parameter in child.parameters(recurse=below) if id(parameter) not in seen]
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


def _is_adapted(child: torch.nn.Module) -> bool:
    """Whether it is peft's LoRA layer around a linear one."""
    return hasattr(child, "lora_A") and hasattr(child, "base_layer")


def _plain_name(name: str) -> str:
    """The name that the parameter has in the model without adapters."""
    return name.removeprefix("base_model.model.").replace(".base_layer.", ".")


def _is_adapter_part(name: str) -> bool:
    return ".lora_A." in name or ".lora_B." in name


def _merged(layer: Any) -> torch.Tensor:
    """W + scale B A, worked out in fp32, in the dtype of W, on the CPU."""
    (adapter,) = layer.lora_A.keys()
    weight = layer.base_layer.weight.detach()
    down, up = layer.lora_A[adapter].weight.detach().float(), layer.lora_B[adapter].weight.detach().float()
    merged = weight.float() + layer.scaling[adapter] * (up @ down)
    return merged.to(weight.dtype).to("cpu", copy=True).contiguous()


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
