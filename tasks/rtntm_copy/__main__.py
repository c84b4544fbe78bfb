"""Command line of the experiment rtntm_copy."""

from tasks.command import main
from tasks.rtntm.task import RTNTMCopy

raise SystemExit(main(RTNTMCopy))
