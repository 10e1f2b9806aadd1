import json
import random
import sys

import numpy as np
import pytest
import torch

from unlearn_core.data.tokenization import load_tokenizer
from unlearn_core.errors import MissingPackageError, UserError
from unlearn_core.evaluation import lm_eval_tasks
from unlearn_core.evaluation.lm_eval_tasks import check_tasks, run_tasks
from unlearn_core.models import load_model

QUESTIONS = [
    {"q": "Ada was born in", "choices": [" London", " Paris and then moved on", " Rome"], "gold": 0},
    {"q": "The river is", "choices": [" a b c", " long", " z"], "gold": 2},
    {"q": "Who wrote it?", "choices": [" Nobody", " Somebody", " Anybody"], "gold": 1},
    {"q": "One more", "choices": [" x", " y y", " z z z"], "gold": 1},
]

CHOICE = """
task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {file}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{q}}}}"
doc_to_target: gold
doc_to_choice: choices
target_delimiter: ""
metric_list:
  - metric: acc
  - metric: acc_norm
{more}
"""
GROUP = """
group: own_group
task: [own_choice, own_other]
aggregate_metric_list:
  - metric: acc
    weight_by_size: true
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasks")
    for name, rows in (("choice", QUESTIONS), ("other", QUESTIONS[:1])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        text = CHOICE.format(name=f"own_{name}", file=folder / f"{name}.jsonl", more="")
        (folder / f"{name}.yaml").write_text(text)
    (folder / "unsafe.yaml").write_text(
        CHOICE.format(name="own_unsafe", file=folder / "choice.jsonl", more="unsafe_code: true")
    )
    (folder / "lost.yaml").write_text(CHOICE.format(name="own_lost", file=folder / "none.jsonl", more=""))
    (folder / "group.yaml").write_text(GROUP)
    return str(folder)


@pytest.fixture(scope="module", autouse=True)
def own_data_cache(tmp_path_factory):
    """Data sets that are read here are cached in a folder of the tests."""
    import datasets

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        yield


@pytest.fixture(scope="module")
def loaded(taught):
    return load_model(str(taught), "fp32"), load_tokenizer(str(taught))


@pytest.fixture
def no_defaults(monkeypatch):
    """Spares the 11 seconds in which the harness reads its own tasks."""
    read = lm_eval_tasks._index
    monkeypatch.setattr(lm_eval_tasks, "_index", lambda folder, _: read(folder, False))


def choice_log_probs(model, tokenizer):
    """Sum of the log-probabilities of each choice after its question, one at a time."""
    found = []
    for row in QUESTIONS:
        context = tokenizer(row["q"], add_special_tokens=False)["input_ids"]
        sums = []
        for choice in row["choices"]:
            whole = tokenizer(row["q"] + choice, add_special_tokens=False)["input_ids"]
            with torch.inference_mode():
                log_probs = model(input_ids=torch.tensor([whole])).logits[0].log_softmax(-1)
            sums.append(sum(log_probs[t - 1, whole[t]].item() for t in range(len(context), len(whole))))
        found.append(sums)
    return found


def test_accuracies_are_those_of_one_choice_at_a_time(loaded, folder):
    model, tokenizer = loaded
    sums = choice_log_probs(model, tokenizer)
    hits = [int(np.argmax(row)) == question["gold"] for row, question in zip(sums, QUESTIONS, strict=True)]
    by_length = [
        int(np.argmax([s / len(choice) for s, choice in zip(row, question["choices"], strict=True)]))
        == question["gold"]
        for row, question in zip(sums, QUESTIONS, strict=True)
    ]
    found = run_tasks(model, tokenizer, ["own_choice"], include_path=folder, batch_size=3)
    assert list(found) == ["lm_eval/own_choice/acc", "lm_eval/own_choice/acc_norm"]
    assert found["lm_eval/own_choice/acc"] == pytest.approx(np.mean(hits))
    assert found["lm_eval/own_choice/acc_norm"] == pytest.approx(np.mean(by_length))
    assert run_tasks(model, tokenizer, ["own_choice"], 2, folder)["lm_eval/own_choice/acc"] == np.mean(hits[:2])


def test_runs_repeat_and_leave_random_states_and_tokenizer(loaded, folder):
    model, tokenizer = loaded
    settings, template = tokenizer.init_kwargs.copy(), tokenizer.pad_token
    random.seed(3)
    np.random.seed(3)
    torch.manual_seed(3)
    states = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()
    first = run_tasks(model, tokenizer, ["own_choice"], None, folder, num_fewshot=2)
    assert run_tasks(model, tokenizer, ["own_choice"], None, folder, num_fewshot=2, batch_size=1) == first
    assert random.getstate() == states[0] and torch.equal(torch.get_rng_state(), states[2])
    assert np.array_equal(np.random.get_state()[1], states[1])
    assert (tokenizer.init_kwargs, tokenizer.pad_token) == (settings, template)


def test_a_group_has_its_aggregate_alone(loaded, folder, no_defaults):
    model, tokenizer = loaded
    single = run_tasks(model, tokenizer, ["own_choice"], include_path=folder)["lm_eval/own_choice/acc"]
    other = run_tasks(model, tokenizer, ["own_other"], include_path=folder)["lm_eval/own_other/acc"]
    group = run_tasks(model, tokenizer, ["own_group"], include_path=folder)
    # Weighted by their sizes of 4 and 1.
    assert group == {"lm_eval/own_group/acc": pytest.approx((4 * single + other) / 5)}


def test_a_group_without_an_aggregate_stands_for_its_tasks(loaded, tmp_path, folder, no_defaults):
    model, tokenizer = loaded
    for name in ("choice", "other"):
        text = CHOICE.format(name=f"own_{name}", file=f"{folder}/{name}.jsonl", more="tag: own_tag")
        (tmp_path / f"{name}.yaml").write_text(text)
    (tmp_path / "group.yaml").write_text("group: plain_group\ntask: [own_choice, own_other]\n")
    expected = [f"lm_eval/own_{task}/{metric}" for task in ("choice", "other") for metric in ("acc", "acc_norm")]
    for name in ("plain_group", "own_tag"):
        assert list(run_tasks(model, tokenizer, [name], include_path=str(tmp_path))) == expected


def test_mistakes_are_found_before_a_model_is_needed(loaded, folder, no_defaults):
    check_tasks(["own_choice", "own_group"], folder)
    with pytest.raises(UserError, match=r"no task 'own_choise'.*did you mean 'own_choice'"):
        check_tasks(["own_choise"], folder)
    with pytest.raises(UserError, match="'own_unsafe' runs code that the model writes"):
        check_tasks(["own_unsafe"], folder)
    with pytest.raises(UserError, match="each of them once"):
        check_tasks(["own_choice", "own_choice"], folder)
    with pytest.raises(UserError, match="at least one name"):
        check_tasks([])
    with pytest.raises(UserError, match=r"include_path .* does not exist"):
        check_tasks(["own_choice"], f"{folder}/none")
    model, tokenizer = loaded
    with pytest.raises(UserError, match="expected at least 1 each"):
        run_tasks(model, tokenizer, ["own_choice"], 0, folder)
    with pytest.raises(UserError, match="cannot read their data"):
        run_tasks(model, tokenizer, ["own_lost"], None, folder)


def test_the_package_is_named_where_it_is_missing(folder, monkeypatch):
    lm_eval_tasks._index.cache_clear()
    for name in [name for name in sys.modules if name.split(".")[0] == "lm_eval"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'unlearn\[lm-eval\]'"):
        check_tasks(["own_choice"], folder)
