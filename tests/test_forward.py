"""Packed rows and a sliced head against the model's own forward on padded rows, with all of its logits."""

import dataclasses

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from unlearn_core.data.packing import prepare
from unlearn_core.data.tokenization import Example, collate
from unlearn_core.forward import Forward
from unlearn_core.head import HiddenRows, SlicedHead, WholeLogits
from unlearn_core.models import has_plain_head
from unlearn_core.objective import concatenate
from unlearn_core.objectives.representation import control_vector
from unlearn_core.parts import LOSSES, objective

VOCABULARY = 97
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "initializer_range": 0.1,  # predictions that are not all but flat, whose entropy fp32 cannot tell from log V
}
ARCHITECTURES = {
    "llama": {},
    "mistral": {"sliding_window": 5},
    "qwen2": {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
    "qwen3": {},
    "phi3": {"num_key_value_heads": 4, "pad_token_id": 0},
    "gemma": {"tie_word_embeddings": True},
    "gemma2": {"sliding_window": 32, "final_logit_softcapping": 3.0},
}


def model_of(kind, **more):
    torch.manual_seed(0)
    attention = "eager" if kind == "gemma2" else "sdpa"
    config = AutoConfig.for_model(kind, **{**SIZES, **ARCHITECTURES[kind], **more}, attn_implementation=attention)
    return AutoModelForCausalLM.from_config(config).float().train()


def rows(seed, lengths, prompt=3):
    generator = torch.Generator().manual_seed(seed)
    return collate(
        [
            Example(f"{seed}-{b}", tuple(torch.randint(1, VOCABULARY, (n,), generator=generator).tolist()), prompt)
            for b, n in enumerate(lengths)
        ],
        0,
    )


BATCH = rows(1, (5, 17, 4, 11))
PAIR = concatenate(BATCH, rows(1, (8, 4, 9, 20)))


def plain(model, batch, inputs, layer=None):
    """A readout of the model's own forward on padded rows."""
    output = model(
        input_ids=batch.input_ids_BT,
        attention_mask=batch.attention_mask_BT,
        use_cache=False,
        output_hidden_states=layer is not None,
    )
    if layer is not None:
        return HiddenRows(output.hidden_states[layer + 1].flatten(0, 1)[inputs.labels_at_N])
    return WholeLogits(output.logits.flatten(0, 1)[inputs.predictors_N], inputs)


def gradients(model, loss):
    model.zero_grad(set_to_none=True)
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def relative(found, expected):
    difference = sum((found[name] - expected[name]).double().square().sum() for name in expected)
    return float((difference / sum(g.double().square().sum() for g in expected.values())).sqrt())


def both(kind, part, batch, packed=True, slice_rows=4, **settings):
    """Loss and gradients of an objective: by the engine's forward, and by the model's own in fp64."""
    reference, model = model_of(kind).double(), model_of(kind)
    forward = Forward(model, packed, slice_rows)
    padded = prepare(batch, packed=False, skip_first=part.skip_first)
    inputs = prepare(batch, forward.packs, part.skip_first)
    own = loss_and_gradients(
        part, reference, padded, lambda read: read(plain(reference, batch, padded, part.read_layer))
    )
    return own, loss_and_gradients(part, model, inputs, lambda read: forward(inputs, read, part.read_layer))


def loss_and_gradients(part, model, inputs, run):
    """Of a model whose passes `run` reads; the teacher is the same model, shaken."""
    control = None if part.control is None else control_vector(32, part.control)
    references = {(name, item_id): -30.0 - b for name in part.sets for b, item_id in enumerate(inputs.item_ids)}
    teacher = None
    if part.needs_teacher:
        kept = [p.detach().clone() for p in model.parameters()]
        with torch.no_grad():
            for p in model.parameters():
                p += 0.05 * torch.sin(torch.arange(p.numel())).view(p.shape)
            teacher = run(lambda readout: readout.keep())
            for p, before in zip(model.parameters(), kept, strict=True):
                p.copy_(before)
    loss = run(lambda readout: part.sum(readout, inputs, references, teacher, control))
    return float(loss.detach()), gradients(model, loss * 0.37)


@pytest.mark.parametrize("kind", ARCHITECTURES)
@pytest.mark.parametrize("packed", [True, False], ids=["packed", "padded"])
def test_the_models_own_forward_is_matched(kind, packed):
    own, ours = both(kind, objective("forget", "cross_entropy"), BATCH, packed)
    assert ours[0] == pytest.approx(own[0], rel=1e-6)
    assert relative(ours[1], own[1]) < 1e-6


def test_which_architectures_are_packed_and_sliced():
    for kind in ARCHITECTURES:
        forward = Forward(model_of(kind))
        readout = forward(prepare(BATCH, forward.packs), lambda readout: readout)
        assert forward.packs == (kind != "gemma2")
        assert isinstance(readout, WholeLogits if kind == "gemma2" else SlicedHead)
        assert has_plain_head(forward.model) == (kind != "gemma2")
    assert not Forward(model_of("llama"), packed=False).packs


@pytest.mark.parametrize("slice_rows", [1, 7, 1000])
@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_and_its_gradient_in_any_slices(loss, slice_rows):
    part = objective("forget", loss, **({"coefficient": 2.0} if loss == "rmu_forget" else {}))
    batch = PAIR if part.kind == "pair" else BATCH
    own, ours = both("llama", part, batch, slice_rows=slice_rows)
    assert ours[0] == pytest.approx(own[0], rel=2e-6, abs=1e-6)
    error = relative(ours[1], own[1])
    if error >= 2e-6:  # SatImp's p^5 takes rounding five times: then it is the model's own fp32 that is so far off
        model, padded = model_of("llama"), prepare(batch, packed=False, skip_first=part.skip_first)
        usual = loss_and_gradients(part, model, padded, lambda read: read(plain(model, batch, padded, part.read_layer)))
        assert loss == "satimp" and error < 1.5 * relative(usual[1], own[1])


def test_labels_that_do_not_count_and_rows_without_any():
    part = objective("forget", "npo", skip_first=2)
    own, ours = both("llama", part, BATCH)  # the third row has one label token
    assert ours[0] == pytest.approx(own[0], rel=1e-6)
    assert relative(ours[1], own[1]) < 1e-6


def test_the_changed_model_still_takes_padded_rows_with_a_mask():
    own, model = model_of("mistral"), model_of("mistral")
    Forward(model)
    left = collate([Example("a", tuple(range(1, 12)), 1), Example("b", (5, 6, 7), 1)], 0, padding_side="left")
    arguments = {"input_ids": left.input_ids_BT, "attention_mask": left.attention_mask_BT}
    with torch.no_grad():
        expected, found = (m(**arguments).logits[left.attention_mask_BT.bool()] for m in (own, model))
    assert torch.equal(expected, found)


def test_a_frozen_head_is_the_teachers_too():
    forward = Forward(model_of("llama"), slice_rows=3)
    forward.model.lm_head.weight.requires_grad_(False)
    inputs = prepare(BATCH, forward.packs)
    with torch.no_grad():
        kept = forward(inputs, lambda readout: readout.keep())
    assert kept.weight_VD is None
    loss = forward(inputs, lambda readout: readout.beside_sum(objective("retain", "kl").loss, kept))
    loss.backward()
    assert float(loss.detach()) == pytest.approx(0.0, abs=1e-6)
    assert forward.model.lm_head.weight.grad is None
    assert forward.model.model.embed_tokens.weight.grad is not None


def test_a_copy_of_the_head_is_made_once_and_lent():
    forward = Forward(model_of("llama"), slice_rows=3)
    inputs = prepare(BATCH, forward.packs)
    with torch.no_grad():
        first = forward(inputs, lambda readout: readout.keep())
        second = forward(inputs, lambda readout: readout.keep(first))
    assert first.weight_VD.data_ptr() != forward.model.lm_head.weight.data_ptr()
    assert second.weight_VD is first.weight_VD


def test_rows_of_one_length_need_no_packing():
    batch = rows(2, (9, 9))
    inputs = prepare(batch, packed=True)
    assert inputs.packing is None and inputs.attention_mask is None and inputs.input_ids.shape == (2, 9)
    own, ours = both("mistral", objective("forget", "cross_entropy"), batch)
    assert relative(ours[1], own[1]) < 1e-6


def test_what_is_packed_by_hand():
    inputs = prepare(rows(3, (2, 4, 3), prompt=1), packed=True)
    assert inputs.tokens == 9
    assert inputs.position_ids.tolist() == [[0, 1, 0, 1, 2, 3, 0, 1, 2]]
    assert inputs.packing.slots_T.tolist() == [0, 1, 4, 5, 6, 7, 8, 9, 10]
    assert inputs.packing.starts_B1.tolist() == [0, 2, 6, 9]
    assert inputs.predictors_N.tolist() == [0, 2, 3, 4, 6, 7]
    assert inputs.labels_at_N.tolist() == [1, 3, 4, 5, 7, 8]
    assert inputs.rows_N.tolist() == [0, 1, 1, 1, 2, 2]
    assert inputs.targets_N.tolist() == inputs.input_ids[0, inputs.labels_at_N].tolist()


def test_no_row_sees_another():
    forward = Forward(model_of("llama"))
    inputs = prepare(BATCH, packed=True)
    changed = inputs.input_ids.clone()
    changed[0, :5] = 7  # the first row's
    with torch.no_grad():
        before = forward(inputs, lambda readout: readout.hidden_ND)
        states = forward(dataclasses.replace(inputs, input_ids=changed), lambda readout: readout.hidden_ND)
    later = inputs.rows_N > 0
    assert torch.equal(before[later], states[later])
    assert not torch.equal(before[~later], states[~later])


def test_bf16_adds_the_heads_gradient_up_in_fp32():
    torch.manual_seed(3)
    hidden_ND, weight_VD = torch.randn(512, 16).bfloat16(), torch.randn(50, 16).bfloat16()
    inputs = dataclasses.replace(
        prepare(BATCH, packed=True),
        targets_N=torch.randint(0, 50, (512,)),
        rows_N=torch.zeros(512, dtype=torch.long),
    )
    found = {}
    for slice_rows in (512, 4):
        weight = weight_VD.clone().requires_grad_()
        head = SlicedHead(hidden_ND, weight, None, inputs, slice_rows)
        head.token_sum(objective("retain", "cross_entropy").loss).backward()
        found[slice_rows] = weight.grad.double()
    assert float((found[4] - found[512]).norm() / found[512].norm()) < 6e-3  # 128 sums in bf16 would be off by 2e-2
