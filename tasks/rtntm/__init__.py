"""Copying, reversing and adding with the recurrent transformer with NTM memory (RTNTM).

The commands are ``tasks.rtntm_copy``, ``tasks.rtntm_reverse`` and ``tasks.rtntm_add``.

Letters: B batch, T steps, V vocabulary, N memory slots, R read heads, W write heads.
"""
