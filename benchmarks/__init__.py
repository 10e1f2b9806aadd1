"""One module a claim: each prints its figures, the verdict last, and exits non-zero when it falls short."""
