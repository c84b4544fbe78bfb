"""The command ``python -m tasks.ntm_copy``; the experiment is :mod:`tasks.ntm.copy`."""
