"""Command line of the graph experiment."""

from tasks.command import main
from tasks.dnc_graph.task import DncGraph

raise SystemExit(main(DncGraph))
