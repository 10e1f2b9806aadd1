"""The usual evaluation loop, which `benchmarks.evaluation` measures the engine against.

What open-unlearning's evaluation does: one metric at a time, each with a pass of its own over its rows, in batches of
32 in the order of the data set, by `transformers`' own `forward` and `generate`. Logits are of the whole vocabulary at
every position, in fp32. Its passes over the TOFU suite:

    probability             the answers of every group; the paraphrases of forget and retain
    perturbed probability   one forward pass for each wrong answer of a batch, every group
    ROUGE                   `generate`, greedy, left padding, dynamic cache; scores between the batches; every group
    extraction strength     forget
    exact memorisation      forget
    loss, zlib, min-k       forget and holdout, a pass each
    min-k++                 forget and holdout, two passes: the tokens' log-probabilities, then the vocabulary's

The truth ratio, model utility and forget quality use these numbers and cost nothing. Where the definitions differ, this
project's are computed, so that the numbers can be compared. It is a loop as one would write it: inference mode, rows
tokenised once for all passes, cross-entropy on the flat logits, no work in Python per token but what a number needs.
"""

import time
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from itertools import takewhile
from typing import Any

import torch
from rouge_score.rouge_scorer import RougeScorer
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import GenerationConfig, PreTrainedModel

from unlearn_core.data.tokenization import IGNORE, Batch, Example, Formatter, collate
from unlearn_core.evaluation.items import Item

ROWS = 32
MIN_K = 0.4
Numbers = dict[str, dict[str, Any]]
"""Item id to record field to value."""


class UsualLoop:
    """One model, measured pass by pass.

    Args:
        model: in evaluation mode, on the CPU.
        formatter: of its tokenizer.
        items: of the kind `question`.
        max_new_tokens: longest generated answer.
    """

    def __init__(
        self, model: PreTrainedModel, formatter: Formatter, items: Sequence[Item], max_new_tokens: int
    ) -> None:
        self.numbers: Numbers = defaultdict(dict)
        self.seconds: dict[str, float] = {}
        """Of each pass."""
        self._model = model
        self._formatter = formatter
        self._items = items
        self._max_new_tokens = max_new_tokens

    def score(self) -> None:
        """All passes that need log-probabilities."""
        started = time.perf_counter()
        answers, paraphrases, wrong = self._tokenised()
        self.seconds["tokenise"] = time.perf_counter() - started
        scored = [item for item in self._items if item.group != "holdout"]
        forget = [item for item in self._items if item.group == "forget"]
        attacked = [item for item in self._items if item.token_scores]
        with torch.inference_mode():
            self._pass("probability", scored, answers, self._probability("avg_loss"))
            paraphrased = [item for item in scored if item.paraphrase is not None]
            self._pass("paraphrase", paraphrased, paraphrases, self._probability("paraphrased_loss"))
            for item in scored:
                self.numbers[item.item_id]["perturbed_losses"] = []
            started = time.perf_counter()
            for chosen in _batches(scored):
                for k in range(max(len(item.wrong) for item in chosen)):
                    having = [item for item in chosen if len(item.wrong) > k]
                    batch = self._batch([wrong[item.item_id][k] for item in having])
                    for item, loss in zip(having, self._mean_losses(batch), strict=True):
                        self.numbers[item.item_id]["perturbed_losses"].append(loss)
            self.seconds["perturbed"] = time.perf_counter() - started
            self._pass("extraction strength", forget, answers, self._extraction_strength)
            self._pass("exact memorisation", forget, answers, self._exact_memorisation)
            self._pass("loss", attacked, answers, self._probability("loss_score"))
            self._pass("zlib", attacked, answers, self._zlib)
            self._pass("min-k", attacked, answers, self._min_k)
            self._pass("min-k++", attacked, answers, self._min_k_plus_plus)

    def generate(self) -> None:
        """The ROUGE pass."""
        started = time.perf_counter()
        scorer = RougeScorer(["rouge1", "rougeL"], use_stemmer=True)
        end_ids = self._formatter.end_ids
        settings = GenerationConfig(
            do_sample=False,
            max_new_tokens=self._max_new_tokens,
            eos_token_id=list(end_ids),
            pad_token_id=self._formatter.pad_id,
        )
        for chosen in _batches([item for item in self._items if item.generate]):
            prompts = [self._formatter.prompt_ids(item.prompt) for item in chosen]
            longest = max(map(len, prompts))
            ids_BT = torch.full((len(prompts), longest), self._formatter.pad_id)
            mask_BT = torch.zeros_like(ids_BT)
            for b, prompt in enumerate(prompts):
                ids_BT[b, longest - len(prompt) :] = torch.tensor(prompt)
                mask_BT[b, longest - len(prompt) :] = 1
            output_BT = self._model.generate(  # pyright: ignore[reportCallIssue]
                input_ids=ids_BT, attention_mask=mask_BT, generation_config=settings
            )
            for item, row in zip(chosen, output_BT[:, longest:].tolist(), strict=True):
                text = self._formatter.decode(takewhile(lambda token: token not in end_ids, row))
                overlap = scorer.score(item.answer, text)
                self.numbers[item.item_id] |= {
                    "generation": text,
                    "rouge1_recall": overlap["rouge1"].recall,
                    "rougeL_recall": overlap["rougeL"].recall,
                    "rougeL_f1": overlap["rougeL"].fmeasure,
                }
        self.seconds["generate"] = time.perf_counter() - started

    # -- passes --------------------------------------------------------------------------------------------------------

    def _tokenised(self) -> tuple[dict[str, Example], dict[str, Example], dict[str, list[Example]]]:
        answers, paraphrases, wrong = {}, {}, {}
        for item in self._items:
            make: Callable[[str], Example] = lambda text, item=item: self._formatter.example(  # noqa: E731
                item.item_id, item.prompt, text
            )
            answers[item.item_id] = make(item.answer)
            if item.paraphrase is not None:
                paraphrases[item.item_id] = make(item.paraphrase)
            wrong[item.item_id] = [make(text) for text in item.wrong]
        return answers, paraphrases, wrong

    def _pass(
        self,
        name: str,
        items: Sequence[Item],
        examples: dict[str, Example],
        measure: Callable[[Sequence[Item], Batch], None],
    ) -> None:
        started = time.perf_counter()
        for chosen in _batches(items):
            measure(chosen, self._batch([examples[item.item_id] for item in chosen]))
        self.seconds[name] = time.perf_counter() - started

    def _batch(self, examples: Sequence[Example]) -> Batch:
        return collate(examples, self._formatter.pad_id)

    def _logits(self, batch: Batch) -> Tensor:
        """Of the whole vocabulary at every position but the last, fp32."""
        output = self._model(input_ids=batch.input_ids_BT, attention_mask=batch.attention_mask_BT, use_cache=False)
        return output.logits[:, :-1].float()

    def _mean_losses(self, batch: Batch) -> list[float]:
        logits_BTV, labels_BT = self._logits(batch), batch.labels_BT[:, 1:]
        losses = cross_entropy(logits_BTV.flatten(0, 1), labels_BT.flatten(), ignore_index=IGNORE, reduction="none")
        counts_B = (labels_BT != IGNORE).sum(dim=1)
        return (losses.view_as(labels_BT).sum(dim=1) / counts_B).tolist()

    def _probability(self, field: str) -> Callable[[Sequence[Item], Batch], None]:
        def measure(items: Sequence[Item], batch: Batch) -> None:
            for item, loss in zip(items, self._mean_losses(batch), strict=True):
                self.numbers[item.item_id][field] = loss

        return measure

    def _zlib(self, items: Sequence[Item], batch: Batch) -> None:
        for item, loss in zip(items, self._mean_losses(batch), strict=True):
            self.numbers[item.item_id]["zlib_score"] = loss / len(zlib.compress(item.answer.encode()))

    def _hits(self, batch: Batch) -> Iterator[Tensor]:
        """Of each row's label tokens but the end token, whether the arg-max hits."""
        best_BT, labels_BT = self._logits(batch).argmax(dim=-1), batch.labels_BT[:, 1:]
        for best_T, labels_T in zip(best_BT, labels_BT, strict=True):
            real_T = labels_T != IGNORE
            yield (best_T[real_T] == labels_T[real_T])[:-1]

    def _extraction_strength(self, items: Sequence[Item], batch: Batch) -> None:
        for item, hits_L in zip(items, self._hits(batch), strict=True):
            misses = (~hits_L).nonzero()
            start = int(misses[-1]) + 1 if len(misses) else 0
            self.numbers[item.item_id]["extraction_strength"] = 1 - start / len(hits_L)

    def _exact_memorisation(self, items: Sequence[Item], batch: Batch) -> None:
        for item, hits_L in zip(items, self._hits(batch), strict=True):
            self.numbers[item.item_id]["exact_memorization"] = float(hits_L.double().mean())

    def _token_log_probs(self, batch: Batch) -> list[Tensor]:
        """Of each row's label tokens but the end token."""
        log_probs_BTV, labels_BT = self._logits(batch).log_softmax(dim=-1), batch.labels_BT[:, 1:]
        real_BT = labels_BT != IGNORE
        chosen_BT = log_probs_BTV.gather(2, labels_BT.clamp_min(0)[:, :, None]).squeeze(2)
        return [chosen_T[real_T][:-1] for chosen_T, real_T in zip(chosen_BT, real_BT, strict=True)]

    def _min_k(self, items: Sequence[Item], batch: Batch) -> None:
        for item, log_probs_L in zip(items, self._token_log_probs(batch), strict=True):
            self.numbers[item.item_id]["min_k_score"] = _lowest(log_probs_L)

    def _min_k_plus_plus(self, items: Sequence[Item], batch: Batch) -> None:
        chosen = self._token_log_probs(batch)
        log_probs_BTV, real_BT = self._logits(batch).log_softmax(dim=-1), batch.labels_BT[:, 1:] != IGNORE
        for item, log_probs_TV, real_T, log_probs_L in zip(items, log_probs_BTV, real_BT, chosen, strict=True):
            log_LV = log_probs_TV[real_T][:-1]
            p_LV = log_LV.exp()
            mean_L = (p_LV * log_LV).sum(dim=-1)
            variance_L = (p_LV * (log_LV - mean_L[:, None]).square()).sum(dim=-1)
            z_L = (log_probs_L - mean_L) / variance_L.clamp_min(1e-6).sqrt()
            self.numbers[item.item_id]["min_k_plus_plus_score"] = _lowest(z_L)


def _lowest(values_L: Tensor) -> float:
    return -float(values_L.sort().values[: max(1, int(MIN_K * len(values_L)))].mean())


def _batches(items: Sequence[Item]) -> Iterator[Sequence[Item]]:
    """Group after group, as the data sets come one after the other."""
    groups: dict[str, list[Item]] = defaultdict(list)
    for item in items:
        groups[item.group].append(item)
    for rows in groups.values():
        for start in range(0, len(rows), ROWS):
            yield rows[start : start + ROWS]
