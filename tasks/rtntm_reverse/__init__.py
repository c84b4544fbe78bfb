"""The command ``python -m tasks.rtntm_reverse``; the experiment is in :mod:`tasks.rtntm`."""
