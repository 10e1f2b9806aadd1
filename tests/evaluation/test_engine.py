"""Scores and greedy answers of a tiny random Llama equal the obvious one-example-at-a-time computation."""

import math

import pytest
import torch
from transformers import GenerationConfig

from unlearn_core.data.tofu import open_benchmark
from unlearn_core.data.tokenization import Example, Formatter, train_tokenizer
from unlearn_core.evaluation import scorer, tofu
from unlearn_core.evaluation.batching import batches_by_tokens
from unlearn_core.evaluation.config import EvaluationConfig
from unlearn_core.evaluation.engine import score_items
from unlearn_core.evaluation.generation import greedy_answers
from unlearn_core.evaluation.scorer import score_answers
from unlearn_core.models import SmallLlama, build_small_llama

BENCHMARK = open_benchmark("synthetic:tiny")
ITEMS = tofu.tasks(BENCHMARK, "forget10")


@pytest.fixture(scope="module")
def formatter():
    texts = [f"{row.question} {row.answer}" for row in BENCHMARK.split("full")]
    return Formatter(train_tokenizer(texts, 320), "chat", 256)


@pytest.fixture(scope="module")
def model(formatter):
    size = SmallLlama(
        hidden_size=32, layers=2, heads=2, mlp_size=64, vocab_size=320, max_positions=512, tie_embeddings=False
    )
    model = build_small_llama(size, formatter.tokenizer, seed=2)
    # Fresh weights predict all tokens alike; scaled up they have opinions, so that hits and losses differ.
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(3)
    return model


@pytest.fixture(scope="module")
def examples(formatter):
    rows = [item.row for item in ITEMS[::3]]
    return [formatter.example(row.item_id, row.question, row.answer) for row in rows]


def one_by_one(model, example: Example) -> tuple[float, list[bool]]:
    """Full logits of one unpadded sequence, token by token."""
    with torch.no_grad():
        logits = model(torch.tensor([example.input_ids])).logits[0].double()
    losses, hits = [], []
    for t in range(example.prompt_length, len(example.input_ids)):
        label = example.input_ids[t]
        losses.append(-float(torch.log_softmax(logits[t - 1], dim=0)[label]))
        hits.append(int(logits[t - 1].argmax()) == label)
    return sum(losses) / len(losses), hits


@pytest.mark.parametrize("token_budget", [1, 100, 100_000])
def test_scores_equal_single_examples_whatever_the_batch(model, examples, token_budget):
    scores = score_answers(model, examples, token_budget)
    for example, score in zip(examples, scores, strict=True):
        loss, hits = one_by_one(model, example)
        assert score.avg_loss == pytest.approx(loss, abs=1e-5)
        assert list(score.matches) == hits
        assert score.tokens == example.label_count == len(score.matches)
    assert len({round(score.avg_loss, 3) for score in scores}) > 3


def test_an_architecture_with_its_own_head_goes_through_its_forward(model, examples, monkeypatch):
    plain = score_answers(model, examples, 400)
    monkeypatch.setattr(scorer, "_PLAIN_HEADS", set())
    own = score_answers(model, examples, 400)
    assert [s.matches for s in own] == [s.matches for s in plain]
    assert [s.avg_loss for s in own] == pytest.approx([s.avg_loss for s in plain], abs=1e-6)


def test_slices_of_logits_change_nothing(model, examples, monkeypatch):
    whole = score_answers(model, examples, 100_000)
    monkeypatch.setattr(scorer, "_LOGIT_BYTES", 4 * 320 * 7)
    sliced = score_answers(model, examples, 100_000)
    assert [s.matches for s in sliced] == [s.matches for s in whole]
    assert [s.avg_loss for s in sliced] == pytest.approx([s.avg_loss for s in whole], abs=1e-6)


def test_a_taught_answer_scores_full_marks(model, examples):
    # The greedy continuation is by construction what the arg-max hits.
    prompt = examples[0].input_ids[: examples[0].prompt_length]
    answer = slow_greedy(model, prompt, end_ids=(), steps=6)
    (score,) = score_answers(model, [Example("x/0", (*prompt, *answer), len(prompt))], 100)
    assert score.matches == (True,) * 6


def test_bf16_stays_near_fp32(model, examples, formatter):
    fine = score_answers(model, examples, 1000)
    import copy

    coarse = score_answers(copy.deepcopy(model).to(torch.bfloat16), examples, 1000)
    assert [s.avg_loss for s in coarse] == pytest.approx([s.avg_loss for s in fine], rel=0.05)


def slow_greedy(model, prompt, end_ids, steps) -> tuple[int, ...]:
    ids = list(prompt)
    for _ in range(steps):
        with torch.no_grad():
            token = int(model(torch.tensor([ids])).logits[0, -1].argmax())
        if token in end_ids:
            break
        ids.append(token)
    return tuple(ids[len(prompt) :])


@pytest.fixture(scope="module")
def prompts(formatter):
    return [formatter.prompt_ids(item.row.question) for item in ITEMS[::4]]


@pytest.mark.parametrize("token_budget", [1, 150, 100_000])
def test_greedy_answers_equal_the_plain_loop(model, prompts, token_budget):
    # End ids are taken from what the model says, so that some answers end early, at different lengths, or at once.
    said = [slow_greedy(model, prompt, (), 12) for prompt in prompts]
    end_ids = (said[0][5], said[1][0])
    expected = [slow_greedy(model, prompt, end_ids, 12) for prompt in prompts]
    assert len({len(answer) for answer in expected}) > 2
    assert greedy_answers(model, prompts, end_ids, 12, token_budget) == expected


def test_a_checkpoints_generation_settings_do_not_matter(model, prompts, recwarn, capfd):
    plain = greedy_answers(model, prompts, (2,), 8, 1000)
    own = model.generation_config
    model.generation_config = GenerationConfig(
        do_sample=True, temperature=2.0, top_k=5, repetition_penalty=1.9, max_length=3, min_new_tokens=8, num_beams=3
    )
    try:
        assert greedy_answers(model, prompts, (2,), 8, 1000) == plain
        assert model.generation_config.repetition_penalty == 1.9
    finally:
        model.generation_config = own
    assert [str(warning.message) for warning in recwarn] == []
    assert capfd.readouterr().err == ""


def test_batches_are_bounded_whole_and_longest_first():
    lengths = [3, 9, 1, 9, 4, 30]
    batches = list(batches_by_tokens(lengths, 20))
    assert batches == [[5], [1, 3], [4, 0, 2]]
    assert list(batches_by_tokens([], 20)) == []


def test_score_items_gives_whole_records_in_order(model, formatter):
    config = EvaluationConfig(max_length=256, max_new_tokens=8)
    chosen = ITEMS[::5]
    records = score_items(model, formatter, chosen, config)
    assert [record.item_id for record in records] == [item.row.item_id for item in chosen]
    for item, record in zip(chosen, records, strict=True):
        assert record.group == item.group
        assert record.prob == pytest.approx(math.exp(-record.avg_loss))
        assert record.tokens == len(record.matches)
        assert len(record.perturbed_losses) == len(item.row.perturbed_answers)
        assert (record.paraphrased_loss is None) == (item.row.paraphrased_answer is None)
        for answer, loss in zip(item.row.perturbed_answers, record.perturbed_losses, strict=True):
            example = formatter.example("x", item.row.question, answer)
            assert loss == pytest.approx(one_by_one(model, example)[0], abs=1e-5)
        prompt = formatter.prompt_ids(item.row.question)
        assert record.generation == formatter.decode(slow_greedy(model, prompt, formatter.end_ids, 8))


def test_broken_weights_give_nan_not_an_exception(model, formatter, examples):
    import copy

    diverged = copy.deepcopy(model)
    with torch.no_grad():
        diverged.model.norm.weight.fill_(math.nan)
    records = score_items(diverged, formatter, ITEMS[:2], EvaluationConfig(max_length=256, max_new_tokens=4))
    assert all(math.isnan(record.avg_loss or 0.0) for record in records)
