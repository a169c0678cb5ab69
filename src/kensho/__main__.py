"""`python -m kensho` is the `kensho` command."""

import sys

from kensho.cli.main import main

sys.exit(main())
