"""Every field of the engine's records equals the plain one-token-at-a-time computation, whatever the batch or order.

The plain computation itself is held to cases worked by hand: a model whose next-token distribution is written down.
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import fields, replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from plain_reference import expected_record, token_ids
from tokenizers.processors import TemplateProcessing
from transformers import (
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
)
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from unlearn_core.data.tofu import open_benchmark
from unlearn_core.data.tokenization import Formatter, collate
from unlearn_core.data.trained_tokenizer import train_tokenizer
from unlearn_core.evaluation.config import EvaluationConfig
from unlearn_core.evaluation.engine import measure
from unlearn_core.evaluation.items import Item
from unlearn_core.evaluation.records import ItemRecord
from unlearn_core.models import SmallLlama, build_small_llama

BENCHMARK = open_benchmark("synthetic:tiny")
MAX_LENGTH = 136
NEW_TOKENS = 24
TOLERANCE = 1e-5
NEAR_TIE = 1e-4
"""Greedy choices closer than this may fall otherwise in another batch."""


# -- the plain computation against numbers worked by hand -------------------------------------------------------------


class Table:
    """A model whose logits after a token are that token's row of a table; gradients go into `table`."""

    def __init__(self, logits_VV: torch.Tensor) -> None:
        self.table = torch.nn.Parameter(logits_VV)

    def __call__(self, input_ids: torch.Tensor) -> Any:
        return SimpleNamespace(logits=self.table[input_ids])

    def parameters(self):
        return [self.table]

    def zero_grad(self) -> None:
        self.table.grad = None


@pytest.fixture(scope="module")
def letters():
    """One token a byte: nothing to merge."""
    return Formatter(train_tokenizer([""], 263), "plain", 64)


def ids_of(formatter: Formatter, text: str) -> list[int]:
    return list(formatter.tokenizer(text, add_special_tokens=False)["input_ids"])


def continuation(answer: str, **changes: Any) -> Item:
    return Item(item_id="c/0", group="c", kind="continuation", prompt="x", answer=answer, **changes)


def test_by_hand_a_uniform_model(letters):
    model = Table(torch.zeros(263, 263))
    found = expected_record(
        model, letters, continuation("abc", token_scores=True), max_new_tokens=2, gradient_norm=True
    )
    assert found["avg_loss"] == pytest.approx(math.log(263), abs=1e-6)
    assert found["prob"] == pytest.approx(1 / 263, abs=1e-8)
    assert found["tokens"] == 3
    # Every log p is its own mean: nothing stands out, and the variance is 0.
    assert found["token_z_scores"] == pytest.approx([0, 0, 0], abs=1e-2)
    assert found["min_k_score"] == pytest.approx(math.log(263), abs=1e-6)
    assert found["zlib_score"] == pytest.approx(math.log(263) / 11, abs=1e-6)
    assert found["smallest_margin"] == 0
    # Three rows of the table get (p - onehot)/3 each: 262 entries of 1/263 and one of 1/263 - 1.
    row = math.sqrt(262 / 263**2 + (1 / 263 - 1) ** 2) / 3
    assert found["gradient_norm"] == pytest.approx(row * math.sqrt(3), abs=1e-6)


@pytest.fixture(scope="module")
def chain(letters):
    """x -> a -> b -> c -> end, each with logit log 262 over zeros, so p = 1/2; c's second choice is z at log 131."""
    table = torch.zeros(263, 263)
    x, a, b, c, z = ids_of(letters, "xabcz")
    for before, after in ((x, a), (a, b), (b, c), (c, letters.end_ids[0])):
        table[before, after] = math.log(262)
    table[c, z] = math.log(131)
    return Table(table)


def test_by_hand_a_chain_of_halves(letters, chain):
    found = expected_record(chain, letters, continuation("abb", token_scores=True), max_new_tokens=9)
    # a, b at p = 1/2; then b after b has p = 1/524.
    third = math.log(524)
    assert found["avg_loss"] == pytest.approx((2 * math.log(2) + third) / 3, abs=1e-6)
    assert found["matches"] == [True, True, False]
    assert found["extraction_strength"] == 0
    assert found["exact_memorization"] == pytest.approx(2 / 3)
    assert found["token_log_probs"] == pytest.approx([-math.log(2), -math.log(2), -third], abs=1e-6)
    # k = int(0.4 * 3) = 1: the least likely token alone.
    assert found["min_k_score"] == pytest.approx(third, abs=1e-6)
    # log p is log 1/2 or log 1/524, each with probability 1/2: mean in the middle, deviation half the distance.
    assert found["token_z_scores"] == pytest.approx([1, 1, -1], abs=1e-5)
    assert found["min_k_plus_plus_score"] == pytest.approx(1, abs=1e-5)
    assert found["generation"] == "abc"
    # After c: log 262 - log 131; before, log 262 - 0.
    assert found["smallest_margin"] == pytest.approx(math.log(2), abs=1e-6)
    compat = expected_record(chain, letters, continuation("abb", token_scores=True), max_new_tokens=9, compat=True)
    assert (compat["extraction_strength"], compat["exact_memorization"]) == (1, 1)
    assert compat["min_k_score"] == pytest.approx(math.log(2), abs=1e-6)
    assert compat["avg_loss"] == found["avg_loss"]


def test_by_hand_extraction_and_rouge(letters, chain):
    found = expected_record(chain, letters, continuation("bbc", stops=("b",)), max_new_tokens=9)
    # Hits: no, no, yes.
    assert found["extraction_strength"] == pytest.approx(1 / 3)
    assert found["generation"] == "a"
    assert (found["rouge1_recall"], found["rougeL_f1"]) == (0, 0)
    whole = expected_record(chain, letters, continuation("abc d", reference_tokens=3), max_new_tokens=9)
    assert whole["answer"] == "abc"
    assert (whole["rouge1_recall"], whole["rougeL_recall"], whole["rougeL_f1"]) == (1, 1, 1)
    part = expected_record(chain, letters, continuation("abc d"), max_new_tokens=9)
    assert (part["rougeL_recall"], part["rougeL_f1"]) == (pytest.approx(1 / 2), pytest.approx(2 / 3))


def test_by_hand_divergence_and_end_token(letters, chain):
    uniform = Table(torch.zeros(263, 263))
    kl = expected_record(uniform, letters, continuation("ab", kl=True), max_new_tokens=1, target=chain)
    # The target: 1/2 on one token, 1/524 on 262 others, against 1/263.
    assert kl["kl_to_target"] == pytest.approx(math.log(263 / 2) / 2 + math.log(263 / 524) / 2, abs=1e-5)
    question = Item(item_id="q/0", group="q", prompt="who", answer="ab")
    assert token_ids(letters, question, "ab")[1] == [*ids_of(letters, " ab"), letters.end_ids[0]]
    found = expected_record(uniform, letters, question, max_new_tokens=1)
    assert found["tokens"] == 4
    assert len(found["matches"]) == 4


# -- the engine against the plain computation -------------------------------------------------------------------------

TEXTS = [f"{row.question} {row.answer}" for row in BENCHMARK.split("full")]


def make_tokenizer(begins: bool):
    tokenizer = train_tokenizer(TEXTS, 400)
    if begins:
        bos = (tokenizer.bos_token, tokenizer.bos_token_id)
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=f"{bos[0]} $A", special_tokens=[bos])
    return tokenizer


FORMATTERS = {
    "plain": Formatter(make_tokenizer(False), "plain", MAX_LENGTH),
    "chat": Formatter(make_tokenizer(False), "chat", MAX_LENGTH, "Answer in one sentence."),
    "plain-begins": Formatter(make_tokenizer(True), "plain", MAX_LENGTH),
}


def taught(seed: int, epochs: int) -> PreTrainedModel:
    """A Llama of 2 layers taught the rows in both styles, and their text without a frame."""
    tokenizer = FORMATTERS["plain"].tokenizer
    size = SmallLlama(
        hidden_size=48, layers=2, heads=4, mlp_size=96, vocab_size=400, max_positions=256, tie_embeddings=False
    )
    model = build_small_llama(size, tokenizer, seed).train()
    examples = [
        formatter.example(row.item_id, row.question, row.answer)
        for formatter in FORMATTERS.values()
        for row in BENCHMARK.split("full")
    ]
    examples += [FORMATTERS["plain"].document(f"text/{i}", text, "truncate")[0] for i, text in enumerate(TEXTS)]
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        for chosen in torch.randperm(len(examples), generator=generator).split(32):
            batch = collate([examples[i] for i in chosen.tolist()], 0)
            loss = model(
                input_ids=batch.input_ids_BT, attention_mask=batch.attention_mask_BT, labels=batch.labels_BT
            ).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model.eval()


@pytest.fixture(scope="session")
def trained():
    return taught(seed=0, epochs=8)


@pytest.fixture(scope="session")
def target():
    return taught(seed=1, epochs=3)


def questions() -> list[Item]:
    """Rows with and without a paraphrase, with a prompt attack, unscored, not generated."""
    forget, facts = BENCHMARK.split("forget10_perturbed"), BENCHMARK.split("world_facts_perturbed")

    def item(row, group, **changes) -> Item:
        return Item(
            item_id=row.item_id,
            group=group,
            prompt=row.question,
            answer=row.answer,
            paraphrase=row.paraphrased_answer,
            wrong=row.perturbed_answers[:2],
            **changes,
        )

    return [
        *(item(row, "forget", token_scores=True, kl=True) for row in forget[:2]),
        *(item(row, "facts") for row in facts[:2]),
        item(replace(forget[3], item_id="opened/0"), "opened", opening=forget[3].answer[:12], score=False),
        item(replace(forget[1], item_id="scored/0"), "scored", generate=False, kl=True),
        item(replace(facts[4], item_id="short/0"), "short", max_new_tokens=3, stemmer=False),
    ]


def raw_items() -> list[Item]:
    """Continuations with stops and parts to compare with, and texts, one of them longer than `max_length`."""
    rows = BENCHMARK.split("full")
    shots = "".join(f"Question: {row.question}\nAnswer: {row.answer}\n\n" for row in rows[5:6])
    long = " ".join(TEXTS[:4])
    return [
        Item(
            item_id="know/0",
            group="know",
            kind="continuation",
            prompt=f"{shots}Question: {rows[0].question}\nAnswer: ",
            answer=rows[0].answer,
            score=False,
            stops=("\n\n", "\nQuestion", " in"),
            max_new_tokens=16,
            stemmer=False,
        ),
        Item(
            item_id="know/1",
            group="know",
            kind="continuation",
            prompt=rows[2].question,
            answer=f" {rows[2].answer}",
            stops=("e", " w"),
        ),
        # The stop may be the first thing that is said: then nothing was.
        Item(
            item_id="know/2",
            group="know",
            kind="continuation",
            prompt=f"Question: {rows[4].question}\nAnswer:",
            answer=rows[4].answer,
            score=False,
            stops=(" ",),
        ),
        *(
            Item(
                item_id=f"verb/{i}",
                group="verb",
                kind="continuation",
                prompt=TEXTS[i][:40],
                answer=TEXTS[i][40:],
                reference_tokens=7,
                max_new_tokens=7,
                token_scores=True,
                kl=True,
                stemmer=False,
            )
            for i in (1, 7)
        ),
        *(
            Item(item_id=f"text/{name}", group="text", kind="text", answer=text, generate=False, token_scores=True)
            for name, text in (("3", TEXTS[3]), ("long", long))
        ),
    ]


def conversations() -> list[Item]:
    row, other = BENCHMARK.split("full")[:2]
    turns = (("user", other.question), ("assistant", other.answer), ("user", row.question))
    return [
        Item(item_id="talk/0", group="talk", kind="conversation", turns=turns, answer=row.answer, token_scores=True),
    ]


def items_of(name: str) -> list[Item]:
    return [*questions(), *raw_items(), *(conversations() if name == "chat" else [])]


def settings(**changes: Any) -> EvaluationConfig:
    values: dict[str, Any] = {"max_length": MAX_LENGTH, "max_new_tokens": NEW_TOKENS}
    return EvaluationConfig(**(values | changes))


IN_PLAIN = {"question"}
"""Fields that the plain computation leaves to the item."""
SAMPLED = {"samples", "sample_rougeL_recall", "reference_score"}


def assert_same_record(found: ItemRecord, expected: dict[str, Any]) -> None:
    for field in fields(ItemRecord):
        name, value = field.name, getattr(found, field.name)
        if name in IN_PLAIN | SAMPLED:
            continue
        wanted = expected.get(name)
        where = f"{found.item_id}: {name}"
        if wanted is None:
            assert value is None or value == (), where
        elif name == "matches":
            assert list(value) == wanted, where
        elif isinstance(wanted, str | int):
            assert value == wanted, where
        else:
            assert value == pytest.approx(wanted, abs=TOLERANCE, rel=TOLERANCE), where


def assert_same_engine_records(found: Sequence[ItemRecord], expected: Sequence[ItemRecord]) -> None:
    by_id = {record.item_id: record for record in expected}
    assert sorted(by_id) == sorted(record.item_id for record in found)
    for record in found:
        wanted = by_id[record.item_id]
        if wanted.smallest_margin is not None and wanted.smallest_margin < NEAR_TIE:
            same = {name: getattr(record, name) for name in GENERATED}
            wanted = replace(wanted, **same)
        values = {field.name: getattr(wanted, field.name) for field in fields(ItemRecord)}
        values["matches"] = list(values["matches"])
        assert_same_record(record, {name: value for name, value in values.items() if value not in (None, (), [])})


GENERATED = ("generation", "smallest_margin", "rouge1_recall", "rougeL_recall", "rougeL_f1")


@pytest.mark.parametrize(
    ("name", "compat"), [*((name, False) for name in FORMATTERS), ("chat", True), ("plain-begins", True)]
)
def test_every_field_equals_the_plain_computation(trained, target, name, compat):
    formatter, items = FORMATTERS[name], items_of(name)
    config = settings(style=formatter.style, compat=compat, gradient_norm=True)
    records = measure(trained, formatter, items, config, target)
    assert [record.item_id for record in records] == [item.item_id for item in items]
    for item, record in zip(items, records, strict=True):
        expected = expected_record(
            trained,
            formatter,
            item,
            max_new_tokens=NEW_TOKENS,
            compat=compat,
            gradient_norm=True,
            target=target,
        )
        assert_same_record(record, expected)
    # The cases are worth something: answers end at different lengths, hits and misses are mixed.
    assert len({len(record.generation) for record in records if record.generation}) > 5
    assert 0.05 < sum(sum(r.matches) for r in records) / sum(len(r.matches) for r in records) < 0.99


@pytest.mark.parametrize("token_budget", [1, 90, 400, 100_000])
@pytest.mark.parametrize("generation_gib", [1e-6, 4.0])
def test_numbers_do_not_depend_on_the_batch(trained, target, token_budget, generation_gib):
    formatter, items = FORMATTERS["chat"], items_of("chat")
    expected = measure(trained, formatter, items, settings(), target)
    config = settings(token_budget=token_budget, generation_gib=generation_gib)
    assert_same_engine_records(measure(trained, formatter, items, config, target), expected)


def test_numbers_do_not_depend_on_order_or_company(trained, target):
    formatter, items = FORMATTERS["plain-begins"], items_of("plain-begins")
    config = settings(style="plain", token_budget=500)
    expected = measure(trained, formatter, items, config, target)
    assert_same_engine_records(measure(trained, formatter, items[::-1], config, target), expected)
    alone = [record for item in items for record in measure(trained, formatter, [item], config, target)]
    assert_same_engine_records(alone, expected)


# -- other architectures -----------------------------------------------------------------------------------------------

_SMALL: dict[str, Any] = {
    "vocab_size": 400,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
ARCHITECTURES: dict[str, PretrainedConfig] = {
    "llama-gqa-tied": LlamaConfig(**_SMALL, num_key_value_heads=2, tie_word_embeddings=True),
    "qwen2-gqa": Qwen2Config(**_SMALL, num_key_value_heads=1, tie_word_embeddings=True),
    # Its window of 12 tokens is shorter than every prompt with its answer.
    "mistral-window": MistralConfig(**_SMALL, num_key_value_heads=2, sliding_window=12),
    # Every second layer looks 12 tokens back, and logits and attention scores are capped.
    "gemma2-window-caps": Gemma2Config(
        **_SMALL,
        num_key_value_heads=2,
        head_dim=8,
        query_pre_attn_scalar=8,
        sliding_window=12,
        attn_logit_softcapping=2.0,
        final_logit_softcapping=5.0,
    ),
    # Learned positions, tied embeddings, another naming of everything.
    "gpt2": GPT2Config(vocab_size=400, n_positions=256, n_embd=32, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=2),
}


OF_EVERY_KIND = (
    *("forget10_perturbed/00000", "world_facts_perturbed/00001", "opened/0", "know/1", "verb/1", "text/3", "text/long"),
)
"""Items of the plain style that stand for the others."""


def random_model(name: str, seed: int) -> Any:
    torch.manual_seed(seed)
    attention = "eager" if "gemma2" in name else "sdpa"
    model = AutoModelForCausalLM.from_config(copy.deepcopy(ARCHITECTURES[name]), attn_implementation=attention)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                # Fresh weights predict all tokens alike; scaled up they have opinions. A flat prediction's small
                # deviation would also magnify the rounding of its log-probabilities in the z-scores.
                parameter.mul_(6)
    return model.float().eval()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_other_architectures_equal_the_plain_computation(name):
    formatter = FORMATTERS["plain"]
    model, target = random_model(name, 0), random_model(name, 1)
    every = items_of("plain")
    items = [item for item in every if item.item_id in OF_EVERY_KIND]
    records = measure(model, formatter, items, settings(style="plain", gradient_norm=True, token_budget=600), target)
    for item, record in zip(items, records, strict=True):
        expected = expected_record(model, formatter, item, max_new_tokens=NEW_TOKENS, gradient_norm=True, target=target)
        if expected.get("smallest_margin", 1.0) < NEAR_TIE:
            expected |= {field: getattr(record, field) for field in GENERATED}
        assert_same_record(record, expected)
    assert len({round(record.avg_loss, 3) for record in records if record.avg_loss is not None}) > 3
