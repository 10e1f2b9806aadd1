"""The model and the rows that `benchmarks.evaluation` measures on: a small Llama, taught until its answers end.

The figures are about time, so the model only has to behave as a fine-tuned one does: its likelihoods differ between
answers, and it ends most of its answers by itself. A model that never ends would make every batch of either side as
long as the longest answer allowed, and one that ends at once would leave nothing to generate.
"""

import os
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel

from unlearn_core.data.tofu import Benchmark, open_benchmark
from unlearn_core.data.tokenization import Formatter, collate, load_tokenizer
from unlearn_core.data.trained_tokenizer import train_tokenizer
from unlearn_core.models import SmallLlama, build_small_llama, load_model

STYLE = "plain"
MAX_LENGTH = 256
FORGET = "forget10"
_LEARNING_RATE = 2e-3
_ROWS = 16


@dataclass(frozen=True)
class Scale:
    """Size of everything.

    Attributes:
        hidden: width of the Llama.
        layers: its blocks.
        vocabulary: most ids of its tokenizer.
        epochs: passes over the rows that it is taught.
        answer: longest generated answer, tokens.
        small: rows of the small row count.
        large: rows of the large one.
        repetitions: counted pairs.
    """

    hidden: int = 128
    layers: int = 4
    vocabulary: int = 4096
    epochs: int = 10
    answer: int = 200
    small: int = 400
    large: int = 4000
    repetitions: int = 3

    def llama(self) -> SmallLlama:
        """The Llama's size."""
        return SmallLlama(
            hidden_size=self.hidden,
            layers=self.layers,
            heads=self.hidden // 32,
            mlp_size=self.hidden * 43 // 16,
            vocab_size=self.vocabulary,
            max_positions=512,
            tie_embeddings=False,
        )


QUICK = Scale(hidden=32, layers=2, vocabulary=512, epochs=8, answer=24, small=24, large=96, repetitions=1)


def source(quick: bool) -> str:
    """Real TOFU where `TOFU_DIR` says where it is, else the built-in synthetic one."""
    if quick:
        return "synthetic:tiny"
    folder = os.environ.get("TOFU_DIR")
    return str(Path(folder).resolve()) if folder else "synthetic:medium"


def taught_model(folder: Path, benchmark: Benchmark, scale: Scale) -> float:
    """Train the model and write it with its tokenizer to `folder`, unless it is there.

    Returns:
        Seconds of training; 0 when it was there.
    """
    if (folder / "model.safetensors").is_file():
        return 0.0
    started = time.perf_counter()
    splits = (FORGET, "retain_perturbed", "real_authors_perturbed", "world_facts_perturbed")
    rows = [row for split in splits for row in benchmark.split(split)]
    tokenizer = train_tokenizer([f"{row.question} {row.answer}" for row in benchmark.split("full")], scale.vocabulary)
    formatter = Formatter(tokenizer, STYLE, MAX_LENGTH)
    examples = [formatter.example(row.item_id, row.question, row.answer) for row in rows]
    model = build_small_llama(scale.llama(), tokenizer, seed=0).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=_LEARNING_RATE, weight_decay=0.0)
    batches = -(-len(examples) // _ROWS)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _LEARNING_RATE, total_steps=scale.epochs * batches)
    generator = torch.Generator().manual_seed(0)
    # Batches of similar length, in random order.
    order_N = sorted(range(len(examples)), key=lambda i: len(examples[i].input_ids))
    for _ in range(scale.epochs):
        for b in torch.randperm(batches, generator=generator).tolist():
            chosen = [examples[i] for i in order_N[b * _ROWS : (b + 1) * _ROWS]]
            batch = collate(chosen, formatter.pad_id)
            loss = model(
                input_ids=batch.input_ids_BT, attention_mask=batch.attention_mask_BT, labels=batch.labels_BT
            ).loss
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
    tokenizer.save_pretrained(folder)
    model.eval().save_pretrained(folder)
    return time.perf_counter() - started


def load(folder: Path) -> tuple[PreTrainedModel, Formatter]:
    """The model in fp32 and its formatter."""
    return load_model(str(folder), "fp32"), Formatter(load_tokenizer(str(folder)), STYLE, MAX_LENGTH)


def open_rows(quick: bool) -> Benchmark:
    """The benchmark's rows."""
    return open_benchmark(source(quick))
