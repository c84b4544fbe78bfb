"""Command line of the bAbI experiment."""

from tasks.command import main
from tasks.dnc_babi.task import DncBabi

raise SystemExit(main(DncBabi))
