"""Command line: parity with adaptive computation time, ``python -m tasks.act_parity train|evaluate|analyse``."""

from tasks.adaptive.parity import AdaptiveParity
from tasks.command import main

if __name__ == "__main__":
    raise SystemExit(main(AdaptiveParity))
