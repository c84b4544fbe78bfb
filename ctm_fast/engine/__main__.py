"""``python -m ctm_fast.engine compare FILE``, see ``ctm_fast.engine.compare``."""

import sys

from ctm_fast.engine.compare import main

if __name__ == "__main__":
    sys.exit(main())
