"""Command line of the experiment ntm_copy."""

from tasks.command import main
from tasks.ntm.copy import Copy

raise SystemExit(main(Copy))
