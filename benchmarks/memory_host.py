"""Host memory while a model is loaded for training and exported: anonymous pages of every rank, sampled.

On a CPU the ranks' own parts of the model, which a GPU would hold, lie in the same memory; they are known and taken
off. What is left is what the host has to hold beside them.
"""

import json
import tempfile
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch.multiprocessing.spawn import spawn

MODEL: dict[str, Any] = {
    "hidden_size": 512,
    "intermediate_size": 1408,
    "num_hidden_layers": 24,
    "num_attention_heads": 8,
}
VOCABULARY = 8_000
FILE_BYTES = 32 * 2**20
"""Size of an exported file here, where the model has 340 MB: at 7B it is 2 GiB of 13."""


def anonymous_bytes() -> int:
    """Of this process now; pages of mapped files are not among them."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("no RssAnon in /proc/self/status: this part needs Linux")


@contextmanager
def watched(found: dict[str, int], name: str) -> Any:
    """Note under `name` by how much anonymous memory grew at most inside, and by how much it had grown at the end."""
    before, peak, over = anonymous_bytes(), 0, threading.Event()

    def look() -> None:
        nonlocal peak
        while not over.is_set():
            peak = max(peak, anonymous_bytes() - before)
            time.sleep(0.001)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    found[f"{name} peak"], found[f"{name} after"] = peak, anonymous_bytes() - before


def worker(rank: int, world_size: int, port: int, stage: int, folder: str) -> None:
    """Load, one optimizer step's state left out, export; writes what was seen."""
    import os

    import torch.distributed as dist

    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world_size), LOCAL_RANK="0")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), DS_ACCELERATOR="cpu")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=world_size)
    from benchmarks.step_time import Size, _config
    from unlearn_core.config import RunConfig, build_config
    from unlearn_core.zero import export
    from unlearn_core.zero.engine import ZeroEngine
    from unlearn_core.zero.loading import load_for_training

    config = _config("ngdiff", Size(), stage, "sgd", world_size)
    config = build_config(RunConfig, config.model_dump(mode="json"), {"model.path": f"{folder}/model"})
    export.MAX_FILE_BYTES = FILE_BYTES
    found: dict[str, int] = {}
    with watched(found, "load"):
        model: Any = load_for_training(config)
    own = [getattr(p, "ds_tensor", p) for p in model.parameters()]
    found["own"] = sum(tensor.numel() * tensor.element_size() for tensor in own)
    engine = ZeroEngine(model, config.zero, config.optimizer, False, config.batch)
    output = Path(folder) / f"export-{stage}-{world_size}"
    if rank == 0:
        output.mkdir()
    dist.barrier()
    with watched(found, "export"):
        export.export_weights(engine, output)
    Path(folder, f"{stage}-{world_size}-{rank}.json").write_text(json.dumps(found), encoding="utf-8")
    dist.barrier()
    dist.destroy_process_group()


def host_part(console: Console) -> tuple[list[dict[str, Any]], bool]:
    """Loading and exporting at stages 2 and 3, on 1 and 2 ranks."""
    import socket

    from transformers import LlamaConfig, LlamaForCausalLM

    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        model = LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, num_attention_heads=8, **MODEL)).float()
        whole = sum(p.numel() * p.element_size() for p in model.parameters())
        model.save_pretrained(f"{folder}/model", max_shard_size="64MB")
        del model
        for stage in (2, 3):
            for world_size in (1, 2):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", 0))
                    port = probe.getsockname()[1]
                spawn(worker, (world_size, port, stage, folder), nprocs=world_size)
                seen = [
                    json.loads(Path(folder, f"{stage}-{world_size}-{rank}.json").read_text(encoding="utf-8"))
                    for rank in range(world_size)
                ]
                row: dict[str, Any] = {"stage": stage, "ranks": world_size}
                row["own"] = sum(one["own"] for one in seen) / whole
                row["load"] = sum(one["load peak"] - one["own"] for one in seen) / whole
                row["export"] = sum(one["export peak"] for one in seen) / whole
                row["ok"] = row["load"] <= 1.0 and row["export"] <= 1.0
                rows.append(row)
    table = Table(title=f"host memory in copies of the model ({whole / 1e6:.0f} MB), all ranks together; bound 1")
    for column in ("ZeRO stage", "ranks", "the devices' own", "beside it, loading", "exporting", ""):
        table.add_column(column, justify="right")
    for row in rows:
        cells = [f"{row[key]:.3f}" for key in ("own", "load", "export")]
        table.add_row(str(row["stage"]), str(row["ranks"]), *cells, "ok" if row["ok"] else "over")
    console.print(table)
    return rows, all(row["ok"] for row in rows)
