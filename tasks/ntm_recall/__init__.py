"""The command ``python -m tasks.ntm_recall``; the experiment is :mod:`tasks.ntm.recall`."""
