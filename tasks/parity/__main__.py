"""Command line of the parity experiment."""

from tasks.command import main
from tasks.parity.task import Parity

raise SystemExit(main(Parity))
