"""The command ``python -m tasks.rtntm_copy``; the experiment is in :mod:`tasks.rtntm`."""
