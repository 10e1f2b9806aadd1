"""From rows and texts to padded batches: benchmarks, own files, formatting, and the order of training."""
