"""An evaluation of as many points as a test of the page's size needs."""

import csv
import json
import random

HOSTILE = "</script><script>window.broken = 1</script><img src=x onerror='window.broken = 1'>"


def many_points(folder, runs=90, steps=20):
    """An evaluation of so many runs and steps; made-up numbers, for the page's size alone."""
    dice = random.Random(0)
    folder.mkdir(parents=True)
    columns = ["model", "run", "method", "step", "role", "path", "extraction_strength", "model_utility", "privleak"]
    with open(folder / "metrics.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerow(["full", "full", "finetune", 0, "target", "/none/full", 0.9, 0.7, -90])
        writer.writerow(["retrain", "retrain", "finetune", 0, "reference", "/none/retrain", 0.1, 0.7, 0])
        for run in range(runs):
            method = ("ngdiff", "grad_diff", "npo", "simnpo", "rmu", "mean_teacher")[run % 6]
            for step in range(1, steps + 1):
                strength = max(0.0, 0.9 - step * dice.random() / steps)
                utility = max(0.0, 0.7 - 0.5 * (1 - strength) ** 2 * dice.random())
                writer.writerow([f"{run}-{step}", f"run-{run}", method, step, "checkpoint", f"/none/{run}/{step}",
                                 strength, utility, dice.uniform(-100, 100)])  # fmt: skip
    about = {"status": "complete", "benchmark": "synthetic:small", "forget_split": "forget10", "notes": [HOSTILE]}
    (folder / "evaluation.json").write_text(json.dumps(about))
    return folder
