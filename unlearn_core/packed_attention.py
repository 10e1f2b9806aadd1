"""Attention over packed rows: each row attends to itself, as if it stood alone.

Everything else in a transformer works token by token, so packing costs nothing there. Here queries, keys and values
are laid out in a padded (B, L) rectangle, attended to with a causal mask alone and packed again: padding stands to the
right of its row, so no token sees it. A causal mask without a padding mask is what fused attention kernels take, so
this needs no mask of T x T tokens and no kernel of its own. flash_attention_2 takes packed rows by itself.
"""

from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from unlearn_core.data.packing import PassInputs
from unlearn_core.models import has_plain_head

PACKED = "packed_sdpa"
"""Name of this attention among transformers' own."""


def packed_sdpa(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    packing: Any = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention within each row.

    Args:
        module: the attention layer.
        query: (1, heads, T, d) of packed rows; (B, heads, L, d) of rows without padding when `packing` is None.
        key: likewise, with the layer's number of key heads.
        value: as `key`.
        attention_mask: the single element of `attention_arguments`, which says that rows are packed or have no padding;
            any other is transformers' own, from a call that knows nothing of packing.
        packing: the rows' places.
        sliding_window: tokens that a token sees, itself included; None for all before it.
        kwargs: scaling and the like, for transformers' own function.

    Returns:
        (1, T, heads, d) or (B, L, heads, d); and None, for the weights that fused attention does not have.
    """
    if attention_mask is None or attention_mask.numel() > 1:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    if packing is None:
        longest = query.shape[2]
    else:
        query, key, value = (_unpacked(tensor, packing) for tensor in (query, key, value))
        longest = packing.longest
    mask = None
    if sliding_window is not None and sliding_window < longest:
        ones_LL = torch.ones(longest, longest, dtype=torch.bool, device=query.device)
        mask = (ones_LL.tril() & ones_LL.triu(1 - sliding_window))[None, None]
    kwargs["is_causal"] = mask is None
    attended, _ = sdpa_attention_forward(module, query, key, value, mask, **kwargs)
    if packing is not None:
        attended = attended.flatten(0, 1).index_select(0, packing.slots_T)[None]
    return attended, None


def _unpacked(tensor_1HTd: torch.Tensor, packing: Any) -> torch.Tensor:
    """(1, heads, T, d) -> (B, heads, L, d), zero in the padding."""
    tensor_THd = tensor_1HTd[0].transpose(0, 1)
    places = tensor_THd.new_zeros(packing.rows * packing.longest, *tensor_THd.shape[1:])
    laid_out = places.index_copy(0, packing.slots_T, tensor_THd)
    return laid_out.view(packing.rows, packing.longest, *tensor_THd.shape[1:]).transpose(1, 2)


def use_packed_attention(model: PreTrainedModel) -> bool:
    """Switch a model over, in place; the answer is whether its attention can be packed."""
    kind = model.config._attn_implementation
    if not has_plain_head(model) or kind not in ("sdpa", "flash_attention_2", PACKED):
        return False
    if kind == "sdpa":
        ALL_ATTENTION_FUNCTIONS.register(PACKED, packed_sdpa)
        ALL_MASK_ATTENTION_FUNCTIONS.register(PACKED, sdpa_mask)
        model.set_attn_implementation(PACKED)
    return True


def attention_arguments(model: PreTrainedModel, inputs: PassInputs) -> dict[str, Any]:
    """What the model's attention has to be told: mask, positions, places of packed rows."""
    arguments: dict[str, Any] = {"attention_mask": inputs.attention_mask}
    if inputs.position_ids is not None:
        arguments["position_ids"] = inputs.position_ids
    if model.config._attn_implementation == PACKED and inputs.attention_mask is None:
        # transformers takes a mask of four dimensions as it is. Without one it looks for packed rows itself, which
        # makes the CPU wait for a GPU, and then for a mask of T x T.
        return arguments | {"attention_mask": _no_mask(inputs.input_ids.device), "packing": inputs.packing}
    if inputs.packing is not None:
        starts, longest = inputs.packing.starts_B1, inputs.packing.longest
        arguments |= {
            "cu_seq_lens_q": starts,
            "cu_seq_lens_k": starts,
            "max_length_q": longest,
            "max_length_k": longest,
        }
    return arguments


def _no_mask(device: torch.device) -> torch.Tensor:
    return torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device)
