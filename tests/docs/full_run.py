"""`make docs-check`: the commands of README and docs/ that train, evaluate, search or attack, run for real, one by one.

    python -m tests.docs.full_run [--benchmarks] [--keep FOLDER] [--only WORD]

They run in the order of the pages, in one folder in which the demo has been run, with the demo's recipes at their own
size (tests/docs/documented_commands.py says what is replaced, and what is left out and why). `--benchmarks` runs those
of README after them, which takes hours; some need TOFU_DIR. Prints seconds a command, and at the end a line for
docs/LOG.md. Exit code 1 when a command failed.
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

from tests.docs.documented_commands import at_hand, benchmarks, chosen, own_output, prepare
from tests.docs.snippets import ROOT


def run(words: list[str], folder: Path) -> tuple[int, float, str]:
    """Exit code, seconds, the last lines that it printed."""
    started = time.monotonic()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, *(["-m", "pipelines.cli"] if words[0] == "unlearn" else []), *words[1:]]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    said = (done.stdout + done.stderr).strip().splitlines()
    return done.returncode, time.monotonic() - started, "\n".join(said[-12:])


def main() -> int:
    """Run them all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", type=Path, help="run here, and leave what was made; whole results are not made again")
    parser.add_argument("--only", help="commands with this word alone")
    parser.add_argument("--benchmarks", action="store_true", help="also README's benchmarks: hours")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = (given.keep or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        prepare(folder)
        ran, failed, left_out, started = 0, [], 0, time.monotonic()
        takers: dict[str, str] = {}
        demo = (None, ["unlearn", "demo", "-o", "outputs/demo"], "")
        for block, words, why_not in [demo, *chosen(), *(benchmarks() if given.benchmarks else [])]:
            if given.only and block is not None and given.only not in words:
                continue
            if why_not:
                left_out += 1
                print(f"left out  {block}: {shlex.join(words)}  ({why_not})", flush=True)
                continue
            command = own_output(at_hand(words, folder, "full"), block, takers)
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
