"""The command ``python -m tasks.ntm_sort``; the experiment is :mod:`tasks.ntm.priority_sort`."""
