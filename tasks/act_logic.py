"""Command line: logic with adaptive computation time, ``python -m tasks.act_logic train|evaluate|analyse``."""

from tasks.adaptive.logic import AdaptiveLogic
from tasks.command import main

if __name__ == "__main__":
    raise SystemExit(main(AdaptiveLogic))
