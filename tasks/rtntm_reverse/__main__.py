"""Command line of the experiment rtntm_reverse."""

from tasks.command import main
from tasks.rtntm.task import RTNTMReverse

raise SystemExit(main(RTNTMReverse))
