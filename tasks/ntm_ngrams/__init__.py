"""The command ``python -m tasks.ntm_ngrams``; the experiment is :mod:`tasks.ntm.ngrams`."""
