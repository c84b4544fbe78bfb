"""Command line: sort with adaptive computation time, ``python -m tasks.act_sort train|evaluate|analyse``."""

from tasks.adaptive.sort import AdaptiveSort
from tasks.command import main

if __name__ == "__main__":
    raise SystemExit(main(AdaptiveSort))
