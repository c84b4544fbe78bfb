"""Command line of the experiment ntm_recall."""

from tasks.command import main
from tasks.ntm.recall import Recall

raise SystemExit(main(Recall))
