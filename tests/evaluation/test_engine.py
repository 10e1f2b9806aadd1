"""Scores and greedy answers of a tiny random Llama equal the obvious one-example-at-a-time computation."""

import math

import pytest
import torch
from transformers import GenerationConfig

from unlearn_core import models
from unlearn_core.data.tofu import open_benchmark
from unlearn_core.data.tokenization import Example, Formatter
from unlearn_core.data.trained_tokenizer import train_tokenizer
from unlearn_core.evaluation import generation, scoring, tofu
from unlearn_core.evaluation.batching import batches_by_tokens
from unlearn_core.evaluation.config import EvaluationConfig
from unlearn_core.evaluation.engine import measure
from unlearn_core.evaluation.generation import Request, generate
from unlearn_core.evaluation.scoring import score_examples
from unlearn_core.models import SmallLlama, build_small_llama

BENCHMARK = open_benchmark("synthetic:tiny")
ITEMS = tofu.suite(BENCHMARK, "forget10").items


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
    return [formatter.example(item.item_id, item.prompt, item.answer) for item in ITEMS[::3]]


def greedy_answers(model, prompts, end_ids, steps, memory_gib=1.0, token_budget=1000):
    """Ids of each answer."""
    requests = [Request(tuple(prompt), steps) for prompt in prompts]
    return [answer.ids for answer in generate(model, requests, end_ids, memory_gib, token_budget, lambda _: "")]


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
    scores = score_examples(model, examples, token_budget)
    for example, score in zip(examples, scores, strict=True):
        loss, hits = one_by_one(model, example)
        assert score.avg_loss == pytest.approx(loss, abs=1e-5)
        assert list(score.matches) == hits
        assert len(score.log_probs) == example.label_count == len(score.matches)
    assert len({round(score.avg_loss, 3) for score in scores}) > 3


def test_an_architecture_with_its_own_head_goes_through_its_forward(model, examples, monkeypatch):
    plain = score_examples(model, examples, 400)
    monkeypatch.setattr(models, "_PLAIN_HEADS", set())
    own = score_examples(model, examples, 400)
    assert [s.matches for s in own] == [s.matches for s in plain]
    assert [s.avg_loss for s in own] == pytest.approx([s.avg_loss for s in plain], abs=1e-6)


def test_slices_of_logits_change_nothing(model, examples, monkeypatch):
    whole = score_examples(model, examples, 100_000)
    monkeypatch.setattr(scoring, "_LOGIT_BYTES", {"cpu": 4 * 320 * 7})
    sliced = score_examples(model, examples, 100_000)
    assert [s.matches for s in sliced] == [s.matches for s in whole]
    assert [s.avg_loss for s in sliced] == pytest.approx([s.avg_loss for s in whole], abs=1e-6)


def test_a_taught_answer_scores_full_marks(model, examples):
    # The greedy continuation is by construction what the arg-max hits.
    prompt = examples[0].input_ids[: examples[0].prompt_length]
    answer = slow_greedy(model, prompt, end_ids=(), steps=6)
    (score,) = score_examples(model, [Example("x/0", (*prompt, *answer), len(prompt))], 100)
    assert score.matches == (True,) * 6


def test_bf16_stays_near_fp32(model, examples, formatter):
    fine = score_examples(model, examples, 1000)
    import copy

    coarse = score_examples(copy.deepcopy(model).to(torch.bfloat16), examples, 1000)
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
    return [formatter.prompt_ids(item.prompt) for item in ITEMS[::4]]


@pytest.mark.parametrize("token_budget", [1, 150, 100_000])
@pytest.mark.parametrize("places", [1, 2, 5, 256])
def test_greedy_answers_equal_the_plain_loop(model, prompts, token_budget, places, monkeypatch):
    # End ids are taken from what the model says, so that some answers end early, at different lengths, or at once.
    said = [slow_greedy(model, prompt, (), 12) for prompt in prompts]
    end_ids = (said[0][5], said[1][0])
    expected = [slow_greedy(model, prompt, end_ids, 12) for prompt in prompts]
    assert len({len(answer) for answer in expected}) > 2
    monkeypatch.setattr(generation, "MOST_ROWS", places)
    assert greedy_answers(model, prompts, end_ids, 12, token_budget=token_budget) == expected


def test_memory_for_one_row_is_enough(model, prompts):
    expected = [slow_greedy(model, prompt, (2,), 6) for prompt in prompts]
    assert greedy_answers(model, prompts, (2,), 6, memory_gib=1e-9) == expected


@pytest.mark.parametrize("shared", [8, 40])
def test_a_prefix_that_prompts_have_in_common_changes_nothing(model, prompts, shared):
    # 8 ids are encoded with each prompt, 40 once for all.
    longer = [[*range(100, 100 + shared), *prompt] for prompt in prompts]
    expected = [slow_greedy(model, prompt, (2,), 6) for prompt in longer]
    assert greedy_answers(model, longer, (2,), 6, token_budget=10_000) == expected
    # One prompt is the beginning of another, and two are equal.
    nested = [longer[0][:-3], longer[0], longer[0]]
    assert greedy_answers(model, nested, (2,), 6) == [slow_greedy(model, prompt, (2,), 6) for prompt in nested]


def test_a_model_of_learned_positions_ends_where_they_end(formatter):
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(vocab_size=320, n_positions=24, n_embd=32, n_layer=2, n_head=2, bos_token_id=1, eos_token_id=2)
    model = GPT2LMHeadModel(config).eval()
    prompts = [[5, 6, 7, 8, 9, 10, 11, 12], [20]]
    # The first answer fills all 24 places while the second goes on from its own.
    expected = [slow_greedy(model, prompts[0], (), 16), slow_greedy(model, prompts[1], (), 23)]
    requests = [Request(tuple(prompts[0]), 16), Request(tuple(prompts[1]), 23)]
    assert [a.ids for a in generate(model, requests, (), 1.0, 1000, lambda _: "")] == expected


def test_margins_are_those_of_the_two_largest_logits(model, prompts):
    (answer,) = generate(model, [Request(tuple(prompts[0]), 5)], (), 1.0, 1000, lambda _: "")
    ids, margins = list(prompts[0]), []
    for token in answer.ids:
        with torch.no_grad():
            first, second = model(torch.tensor([ids])).logits[0, -1].topk(2).values.tolist()
        margins.append(first - second)
        ids.append(token)
    assert answer.smallest_margin == pytest.approx(min(margins), abs=1e-5)


def test_stop_texts_end_an_answer(model, prompts):
    letters = "abcdefghij"

    def decode(ids):
        return "".join(letters[i % 10] for i in ids)

    whole = slow_greedy(model, prompts[0], (), 12)
    stop = decode(whole[3:5])
    request = Request(tuple(prompts[0]), 12, (stop, "never"))
    (answer,) = generate(model, [request], (), 1.0, 1000, decode)
    end = decode(whole).index(stop) + 2
    assert answer.ids == whole[:end]


def test_sampled_answers_follow_the_models_distribution_whatever_the_batch(model, prompts):
    prompt = tuple(prompts[0])
    with torch.no_grad():
        p = model(torch.tensor([prompt])).logits[0, -1].double().div(0.7).softmax(0)
    requests = [Request(prompt, 1, uniforms=generation.uniforms(0, "row", k, 1)) for k in range(2000)]
    answers = generate(model, requests, (), 1.0, 1000, lambda _: "", temperature=0.7)
    counts = torch.bincount(torch.tensor([answer.ids[0] for answer in answers]), minlength=320)
    # Five standard deviations of a binomial for each of the five likeliest ids.
    for token in p.topk(5).indices.tolist():
        share = float(p[token])
        assert abs(int(counts[token]) - 2000 * share) < 5 * math.sqrt(2000 * share * (1 - share)) + 1
    draws = [Request(prompt, 4, uniforms=generation.uniforms(0, "row", k, 4)) for k in range(6)]
    together = generate(model, draws, (), 1.0, 1000, lambda _: "")
    alone = [generate(model, [draw], (), 1.0, 1000, lambda _: "")[0].ids for draw in draws]
    assert [answer.ids for answer in together] == alone
    assert len(set(alone)) > 1
    assert generation.uniforms(1, "row", 0, 4).tolist() != generation.uniforms(0, "row", 0, 4).tolist()


def test_a_checkpoints_generation_settings_do_not_matter(model, prompts, recwarn, capfd):
    plain = greedy_answers(model, prompts, (2,), 8)
    own = model.generation_config
    model.generation_config = GenerationConfig(
        do_sample=True, temperature=2.0, top_k=5, repetition_penalty=1.9, max_length=3, min_new_tokens=8, num_beams=3
    )
    try:
        assert greedy_answers(model, prompts, (2,), 8) == plain
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


def test_records_are_whole_and_in_order(model, formatter):
    config = EvaluationConfig(max_length=256, max_new_tokens=8)
    chosen = ITEMS[::5]
    records = measure(model, formatter, chosen, config)
    assert [record.item_id for record in records] == [item.item_id for item in chosen]
    for item, record in zip(chosen, records, strict=True):
        assert record.group == item.group
        assert record.prob == pytest.approx(math.exp(-record.avg_loss))
        assert record.tokens == len(record.matches)
        assert len(record.perturbed_losses) == len(item.wrong)
        assert (record.paraphrased_loss is None) == (item.paraphrase is None)
        for answer, loss in zip(item.wrong, record.perturbed_losses, strict=True):
            example = formatter.example("x", item.prompt, answer)
            assert loss == pytest.approx(one_by_one(model, example)[0], abs=1e-5)
        if item.generate:
            prompt = formatter.prompt_ids(item.prompt)
            assert record.generation == formatter.decode(slow_greedy(model, prompt, formatter.end_ids, 8))
        else:
            assert record.generation is None


def test_broken_weights_give_nan_not_an_exception(model, formatter, examples):
    import copy

    diverged = copy.deepcopy(model)
    with torch.no_grad():
        diverged.model.norm.weight.fill_(math.nan)
    config = EvaluationConfig(max_length=256, max_new_tokens=4, samples=2)
    records = measure(diverged, formatter, ITEMS[:2], config)
    assert all(math.isnan(record.avg_loss or 0.0) for record in records)
    assert all(record.min_k_score is None for record in records)
