"""Command line of the experiment ntm_repeat_copy."""

from tasks.command import main
from tasks.ntm.repeat_copy import RepeatCopy

raise SystemExit(main(RepeatCopy))
