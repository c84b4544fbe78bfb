"""Command line: addition with adaptive computation time, ``python -m tasks.act_addition train|evaluate|analyse``."""

from tasks.adaptive.addition import AdaptiveAddition
from tasks.command import main

if __name__ == "__main__":
    raise SystemExit(main(AdaptiveAddition))
