"""`python -m airstreams`."""

import sys

from airstreams.cli import main

sys.exit(main())
