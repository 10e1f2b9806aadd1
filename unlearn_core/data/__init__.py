"""From question-answer rows to padded batches: benchmarks, formatting, and the order in which rows are trained on."""
