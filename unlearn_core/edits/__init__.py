"""One-shot edits: new weights from those of one or two models in a single pass, without an optimizer."""
