"""Experiments of the Neural Turing Machine (arXiv 1410.5401, section 4): copy, repeat copy, associative recall,
dynamic N-grams and priority sort, one module each, with the commands ``python -m tasks.ntm_copy``,
``ntm_repeat_copy``, ``ntm_recall``, ``ntm_ngrams`` and ``ntm_sort``.

Letters: T input steps, A answer steps, B batch, L vectors, D bits of a vector, N slots, R read heads, V write
heads. Sequences come first: inputs are (T, B, channels).
"""
