"""The reference automata beside the tests are modules of their own: several tests walk along them."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))
