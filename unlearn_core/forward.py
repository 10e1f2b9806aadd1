"""A forward pass whose loss is worked out inside it: what DeepSpeed takes as the model.

    tokens -> blocks -> states of the label rows -> readout -> whatever the objective makes of it

The loss belongs inside because ZeRO-3 has the head's weights only while the head runs, and because states of prompts
and padding need no logits.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel

from unlearn_core.data.packing import PassInputs
from unlearn_core.head import HiddenRows, SlicedHead, WholeLogits
from unlearn_core.models import has_plain_head
from unlearn_core.packed_attention import attention_arguments, use_packed_attention

Read = Callable[[Any], Any]
"""From a readout (unlearn_core/head.py) to a loss, or to what is kept of the pass."""


class ReadoutHead(torch.nn.Linear):
    """The model's output layer; beside logits it gives whatever a reader makes of hidden states, weight and bias."""

    def forward(self, hidden: torch.Tensor, read: Callable[..., Any] | None = None) -> Any:  # noqa: D102
        if read is None:
            return F.linear(hidden, self.weight, self.bias)
        return read(hidden, self.weight, self.bias)


class Forward(torch.nn.Module):
    """A causal language model and how its passes are read.

    Args:
        model: with or without LoRA adapters; its attention and its head's class are changed in place. A module that
            is none of transformers' is run as it is.
        packed: whether rows may be packed.
        slice_rows: most label rows whose logits exist at a time.

    Attributes: `model`; `packs`, whether passes take packed rows.
    """

    def __init__(self, model: torch.nn.Module, packed: bool = True, slice_rows: int = 1024):
        super().__init__()
        self.model = model
        self.slice_rows = slice_rows
        plain: Any = model
        if hasattr(model, "get_base_model"):
            plain = plain.get_base_model()
        self.packs, head, base = False, None, plain
        if isinstance(plain, PreTrainedModel):
            self.packs = packed and use_packed_attention(plain)
            head, base = plain.get_output_embeddings(), plain.base_model
        if head is not None and has_plain_head(plain) and type(head) in (torch.nn.Linear, ReadoutHead):
            head.__class__ = ReadoutHead
        else:
            head = None
        # In a tuple, which torch does not search for modules: DeepSpeed would hook them twice.
        self._parts: tuple[Any, ...] = (plain, base, head)

    def forward(self, inputs: PassInputs, read: Read, layer: int | None = None) -> Any:
        """Run the model and read it.

        Args:
            inputs: on the model's device.
            read: called once, inside.
            layer: number of the block whose output is read, from 0; None for the head's.
        """
        plain, base, head = self._parts
        arguments: dict[str, Any] = {"input_ids": inputs.input_ids, "use_cache": False}
        if isinstance(plain, PreTrainedModel):
            arguments |= attention_arguments(plain, inputs)
        else:
            arguments["attention_mask"] = inputs.attention_mask
        if layer is not None:
            states = base(**arguments, output_hidden_states=True).hidden_states[layer + 1]
            return read(HiddenRows(states.flatten(0, 1)[inputs.labels_at_N]))
        if head is None:
            return read(WholeLogits(plain(**arguments).logits.flatten(0, 1)[inputs.predictors_N], inputs))
        hidden_ND = base(**arguments).last_hidden_state.flatten(0, 1)[inputs.predictors_N]
        return head(
            hidden_ND, lambda hidden, weight, bias: read(SlicedHead(hidden, weight, bias, inputs, self.slice_rows))
        )
