"""Losses as pure functions of tensors; each returns a sum over label tokens, the loop divides by their global count."""
