"""What the experiments of the Differentiable Neural Computer share: settings, scores and pictures.

The experiments are ``dnc_copy``, ``dnc_babi`` and ``dnc_graph``.
"""
