"""Losses as pure functions of tensors; each returns a sum over label tokens or rows, which the loop divides.

Every function returns a loss as its paper minimises it, or, for cross-entropy, the loss that unlearning maximises on
forget rows; whoever composes a method marks that. Logits are finite, of any float dtype; the arithmetic and the result
are fp32. No label token means a loss of 0 with zero gradient.
"""
