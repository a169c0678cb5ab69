"""`python -m kensho` is the `kensho` command."""

import sys

from kensho.cli.entry import main

sys.exit(main())
