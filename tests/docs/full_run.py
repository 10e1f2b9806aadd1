"""`make docs-check`: the commands of README and docs/ that train, evaluate, search or attack, run for real, one by one.

    python -m tests.docs.full_run [--keep FOLDER] [--only WORD]

They run in the order of the pages, in one folder in which the demo has been run, at their smallest size: hub models,
real TOFU and MUSE are replaced by the demo's models and the built-in benchmarks, and runs are cut to a few steps.
Prints seconds a command, and at the end a line for docs/LOG.md. Exit code 1 when a command failed. About half an hour
on 2 cores.
"""

import argparse
import datetime
import os
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.docs.snippets import ROOT, Block, blocks, commands

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
SMALLEST = {
    "finetune": ["--set", "epochs=1"],
    "train": ["--set", "steps=4", "--set", "export_every=2"],
    "search": ["--set", "budget.hours=null", "--trials", "2", "--set", "reruns=0", "--set", "set.steps=4",
               "--set", "set.export_every=2"],
    "robustness": ["--set", "epochs=1"],
}  # fmt: skip
"""Sub-command -> options that cut it to a few steps."""
LEFT_OUT = {
    "submit": "tests/ray/test_submit.py runs jobs",
    "jobs": "tests/ray/test_submit.py runs jobs",
    "cluster": "starts Ray beside this run's own",
    "doctor": "needs the cluster of `unlearn cluster start`",
    "push": "needs the hub",
    "logs": "needs published logs; tests/evaluation has them",
}
"""Sub-command -> why it is not run here."""
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
)
"""In this order: later pages use what earlier ones made. add-a-method.md is run by tests/docs/test_add_a_method.py."""


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


def _why_not(words: list[str]) -> str:
    if words[1] in LEFT_OUT:
        return LEFT_OUT[words[1]]
    if any("s3://" in word for word in words):
        return "needs an object store; tests/test_storage_commands.py has one"
    if "unseen.jsonl" in words:
        return "needs the reader's own files; own-model-and-metric.md has some that run"
    return ""


def at_hand(words: list[str], folder: Path) -> list[str]:
    """The command with what is at hand in the folder, at its smallest size."""
    out = []
    for word in words:
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
        (folder / name).write_text((ROOT / "pipelines" / "recipes" / f"{recipe}.yaml").read_text())


def run(words: list[str], folder: Path) -> tuple[int, float, str]:
    """Exit code, seconds, the last lines that it printed."""
    started = time.monotonic()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "pipelines.cli", *words[1:]]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    said = (done.stdout + done.stderr).strip().splitlines()
    return done.returncode, time.monotonic() - started, "\n".join(said[-12:])


def main() -> int:
    """Run them all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", type=Path, help="run here, and leave what was made; whole results are not made again")
    parser.add_argument("--only", help="commands with this word alone")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = (given.keep or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        prepare(folder)
        plan = [(None, ["unlearn", "demo", "-o", "outputs/demo"], ""), *chosen()]
        ran, failed, left_out, started = 0, [], 0, time.monotonic()
        takers: dict[str, str] = {}
        for block, words, why_not in plan:
            if given.only and block is not None and given.only not in words:
                continue
            if why_not:
                left_out += 1
                print(f"left out  {block}: {shlex.join(words)}  ({why_not})", flush=True)
                continue
            command = own_output(at_hand(words, folder), block, takers)
            code, seconds, said = run(command, folder)
            ran += 1
            verdict = "ok" if code == 0 else f"EXIT {code}"
            print(f"{verdict:8}  {seconds:5.0f} s  {block}: {shlex.join(command)}", flush=True)
            if code != 0:
                failed.append(str(block))
                print(said, flush=True)
        minutes = (time.monotonic() - started) / 60
        told = (
            f"**{datetime.date.today()}, make docs-check**: {ran - len(failed)} of {ran} commands of README and docs/ "
            f"ran, {left_out} left out with a reason, in {minutes:.0f} minutes."
        )
        print(told + (f" Failed: {', '.join(failed)}." if failed else ""))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
