"""The command ``python -m tasks.rtntm_add``; the experiment is in :mod:`tasks.rtntm`."""
