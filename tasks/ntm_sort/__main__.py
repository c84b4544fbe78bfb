"""Command line of the experiment ntm_sort."""

from tasks.command import main
from tasks.ntm.priority_sort import PrioritySort

raise SystemExit(main(PrioritySort))
