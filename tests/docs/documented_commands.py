"""The commands of README and docs/ that train, evaluate, search or attack, made runnable where there is no hub.

Hub models, real TOFU and MUSE are replaced by the demo's models and the built-in benchmarks. `full` leaves the demo's
recipes their own size (40 steps, 30 epochs, 12 trials); `smallest` cuts them to a few steps on the tiny benchmarks.
tests/docs/full_run.py runs the one, tests/ray/test_documented_commands.py the other.
"""

from pathlib import Path
from typing import Literal

from pipelines.runs import recipe_path
from tests.docs.snippets import Block, blocks, commands

Size = Literal["full", "smallest"]

INSTEAD = {
    "tofu-finetune": "demo-finetune",
    "tofu-ngdiff": "demo-ngdiff",
    "tofu-grad-diff": "demo-grad-diff",
    "tofu-search": "demo-search",
    "muse-news-ngdiff": "demo-muse-ngdiff",
    "model.path=meta-llama/Llama-3.2-1B-Instruct": "seed=0",
    "muse-bench/MUSE-News_target": "outputs/muse-pair/target",
    "muse-bench/MUSE-News_retrain": "outputs/muse-pair/reference",
    "muse-bench/MUSE-News": "synthetic-muse:small",
    "outputs/tofu/target": "outputs/demo/finetune/target",
    "outputs/tofu/reference": "outputs/demo/finetune/reference",
    "outputs/pair/target": "outputs/demo/finetune/target",
    "outputs/pair/reference": "outputs/demo/finetune/reference",
    "outputs/more/target": "outputs/demo/finetune/target",
    "MODEL": "outputs/demo/finetune/target",
    "outputs/npo": "outputs/grad_diff",
    "bf16": "fp32",
    "outputs/search-seed0": "outputs/search",
    "outputs/search-seed1": None,
}
"""Words of the pages -> what is at hand here; None leaves a word out."""
FULL = {"train": ["--set", "export_every=20"], "search": ["--set", "budget.hours=null"]}
"""Sub-command -> options that it gets all the same: two models a run for `robustness` to attack, and a search that ends
by its trials, not by the page's twelve hours."""
SMALLEST = {
    "train": ["--set", "steps=2", "--set", "export_every=2"],
    "search": ["--set", "budget.hours=null", "--trials", "2", "--set", "reruns=0", "--set", "set.steps=2",
               "--set", "set.export_every=1"],
    "robustness": ["--attack", "int8", "--attack", "opening"],
}  # fmt: skip
"""Sub-command -> options that cut it to a few steps. Fine-tuning is short on a tiny benchmark, and a search needs a
target that has learned something. Relearning is run by tests/ray/test_robustness_run.py."""
BENCHMARK_KEYS = {"finetune": "benchmark", "train": "data.benchmark", "search": "set.data.benchmark"}
LEFT_OUT = {
    "submit": "tests/ray/test_submit.py runs jobs",
    "jobs": "tests/ray/test_submit.py runs jobs",
    "cluster": "starts Ray beside this run's own",
    "doctor": "needs the cluster of `unlearn cluster start`",
    "push": "needs the hub",
    "logs": "needs published logs; tests/evaluation has them",
}
"""Sub-command -> why it is not run here."""
ON_A_GPU = ("benchmarks.gpu_7b", "benchmarks.tofu_full")
PAGES = (
    "muse.md",
    "README.md",
    "own-model-and-metric.md",
    "report.md",
    "hyperparameter-search.md",
    "methods.md",
    "model-cards.md",
    "planner.md",
    "terminal.md",
    "faults.md",
    "robustness.md",
    "logging.md",
    "comparison.md",
)
"""In this order: later pages use what earlier ones made."""
OTHER_PAGES = {
    "add-a-method.md": "tests/docs/test_add_a_method.py runs it",
    "cluster.md": "tests/ray/test_submit.py runs jobs, tests/test_jobs.py the rest",
    "storage.md": "tests/test_storage_commands.py runs them against an object store",
    "LOG.md": "dated results; its commands ran when they were written",
}
"""Pages whose commands are run elsewhere."""


def chosen() -> list[tuple[Block, list[str], str]]:
    """(block, words, why it is left out or "") of each command of ours on the pages."""
    everything = blocks()
    found = []
    for page in PAGES:
        for block in everything:
            if block.page != page or block.language not in ("bash", "console") or block.text.startswith("#!"):
                continue
            for words in commands(block):
                if words[0] == "unlearn":
                    found.append((block, words, _why_not(words)))
    return found


def benchmarks() -> list[tuple[Block, list[str], str]]:
    """The same for README's list of benchmarks, which run at their own size wherever they are."""
    readme = [(block, words) for block in blocks() if block.page == "README.md" for words in commands(block)]
    return [
        (block, words, "needs a GPU; tests/benchmarks runs it small" if words[2] in ON_A_GPU else "")
        for block, words in readme
        if words[:2] == ["python", "-m"]
    ]


def _why_not(words: list[str]) -> str:
    if words[1] in LEFT_OUT:
        return LEFT_OUT[words[1]]
    if any("s3://" in word for word in words):
        return "needs an object store; tests/test_storage_commands.py has one"
    if "unseen.jsonl" in words:
        return "needs the reader's own files; own-model-and-metric.md has some that run"
    return ""


def at_hand(words: list[str], folder: Path, size: Size) -> list[str]:
    """The command with what is at hand in the folder, at that size."""
    if words[0] == "python":
        return words
    if words == ["unlearn", "card", "outputs/ngdiff"]:  # which two evaluations have scored by now
        words = ["unlearn", "card", "outputs/mine"]
    out = []
    for word in words:
        if words[1] == "plan" and word == "tofu-ngdiff":  # which needs no rows and no GPU
            out.append(word)
            continue
        if word == "--gpu" and words[1] != "plan":
            continue
        if "*" in word:
            out += [str(path.relative_to(folder)) for path in sorted(folder.glob(word))]
            continue
        key, _, value = word.partition("=")
        if word in INSTEAD:
            out += [INSTEAD[word]] if INSTEAD[word] else []
        elif value in INSTEAD:
            out.append(f"{key}={INSTEAD[value]}")
        else:
            out.append(word)
    if out[1] in ("evaluate", "watch", "robustness") or out[1:3] == ["edit", "slug"]:
        if "--format" not in out:
            out += ["--format", "plain"]
        if not {"--benchmark", "--forget"} & set(out):
            out += ["--benchmark", "synthetic:small", "--max-length", "256"]
    if size == "full":
        if "tofu-search" in words:  # the demo's search itself is README's
            out += ["--trials", "4"]
        return out + FULL.get(out[1], [])
    for long, short in ((":small", ":tiny"), ("outputs/demo/runs/", "outputs/"), ("demo/finetune/", "tofu/")):
        out = [word.replace(long, short) for word in out]
    if out[1] in BENCHMARK_KEYS and out[2] != "mine.yaml":
        tiny = "synthetic-muse:tiny" if "muse" in out[2] else "synthetic:tiny"
        out += ["--set", f"{BENCHMARK_KEYS[out[1]]}={tiny}"]
    if out[1] in ("finetune", "train", "robustness") and "workers.count" not in " ".join(out):
        out += ["--set", "workers.count=1"]
    return out + SMALLEST.get(out[1], [])


def own_output(words: list[str], block: Block | None, takers: dict[str, str]) -> list[str]:
    """The command with an output that no other block's command has written."""
    if "-o" not in words:
        return words
    place = words.index("-o") + 1
    name, number = words[place], 2
    while takers.setdefault(words[place], str(block)) != str(block):
        words = [*words[:place], f"{name}-{number}", *words[place + 1 :]]
        number += 1
    return words


def prepare(folder: Path) -> None:
    """The files that the pages' readers make: recipes to edit, own rows."""
    for block in blocks():
        if block.page == "own-model-and-metric.md" and block.language in ("json", "yaml"):
            name = "mine.yaml" if block.language == "yaml" else "my-forget.jsonl"
            if name == "my-forget.jsonl" and (folder / name).exists():
                name = "my-retain.jsonl"
            (folder / name).write_text(block.text)
    for recipe, name in (("demo-ngdiff", "my-run.yaml"), ("demo-search", "my-search.yaml")):
        (folder / name).write_text(recipe_path(recipe).read_text())
