"""Command line of the experiment ntm_ngrams."""

from tasks.command import main
from tasks.ntm.ngrams import Ngrams

raise SystemExit(main(Ngrams))
