"""How much a model still knows and how useful it still is: scoring, per-item records, metrics, published logs."""
