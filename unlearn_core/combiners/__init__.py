"""Gradient combiners: d = sum_v weights_v g_v, with weights from dot products and loss values alone."""
