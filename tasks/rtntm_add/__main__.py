"""Command line of the experiment rtntm_add."""

from tasks.command import main
from tasks.rtntm.task import RTNTMAdd

raise SystemExit(main(RTNTMAdd))
