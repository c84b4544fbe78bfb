"""What ``ctm_fast`` is measured against, beside the published forward that the models carry themselves.

Strong eager (``nlm``, ``sync``, ``ctm``, ``rl``) is the same mathematics as plain PyTorch can do it well:
weights of the neuron-level models permuted once per forward, keys and values projected once, attention with
one query and no weights returned, synchronisation without a batch dimension in beta, predictions of all ticks
at once. For the Neural Turing Machine, ``ntm`` and ``ntm_model`` hold both: its usual code and strong eager.
``compiled`` is torch.compile of the published tick.
"""
