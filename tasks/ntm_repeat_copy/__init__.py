"""The command ``python -m tasks.ntm_repeat_copy``; the experiment is :mod:`tasks.ntm.repeat_copy`."""
