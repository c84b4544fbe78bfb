"""Command line of the copy experiment."""

from tasks.command import main
from tasks.dnc_copy.task import DncCopy

raise SystemExit(main(DncCopy))
