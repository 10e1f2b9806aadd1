"""Losses on hidden states h of one layer at label tokens: RMU's steering and its anchor.

    forget   sum_n mean_d (h_nd - c u_d)^2          u a fixed random unit vector, c its coefficient
    retain   sum_n mean_d (h_nd - h_ref_nd)^2       h_ref the start model's hidden states

Both are minimised. Source: RMU, arXiv 2403.03218 (WMDP).
"""

import torch


def rmu_forget(hidden_ND: torch.Tensor, control_D: torch.Tensor, *, coefficient: float) -> torch.Tensor:
    """Squared distance of each hidden state from c u, mean over D and sum over N.

    Gradient with respect to h: 2 (h - c u) / D.

    Args:
        hidden_ND: h, any float dtype.
        control_D: u, from `control_vector`; gets no gradient.
        coefficient: c, any real number. To steer, it has to be comparable with the norm of h at that layer.

    Returns:
        Scalar fp32 in [0, inf), in squared units of h.
    """
    return (hidden_ND.float() - coefficient * control_D.detach().float()).square().mean(dim=1).sum()


def rmu_retain(hidden_ND: torch.Tensor, reference_ND: torch.Tensor) -> torch.Tensor:
    """Squared distance of each hidden state from the start model's, mean over D and sum over N.

    Gradient with respect to h: 2 (h - h_ref) / D.

    Args:
        hidden_ND: h, any float dtype.
        reference_ND: h_ref; gets no gradient.

    Returns:
        Scalar fp32 in [0, inf), in squared units of h.
    """
    return (hidden_ND.float() - reference_ND.detach().float()).square().mean(dim=1).sum()


def control_vector(size: int, seed: int) -> torch.Tensor:
    """The fixed direction u: entries uniform on [0, 1), scaled to unit L2 norm.

    All its entries are positive, as in the paper's code, so it is near the all-ones direction: two seeds have a cosine
    of about 3/4, not 0.

    Args:
        size: D, at least 1.
        seed: of a generator of its own on the CPU, so equal on every rank and untouched by any other drawing.

    Returns:
        Shape (D,), fp32, on the CPU.
    """
    control_D = torch.rand(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float32)
    return control_D / control_D.norm()
