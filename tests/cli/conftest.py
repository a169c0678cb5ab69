"""Makes `daemon_process` importable for the tests of this folder."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "server"))
