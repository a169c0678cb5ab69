"""One process of a peer: from its start to the first token of a prompt of 16 ids, printed. Run under the peer's Python.

    python start_peer.py ENGINE WORK_FOLDER THREADS

ENGINE is a name of `peers/engines.py`. The peer is given ids, and need not read a text.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).with_name("peers")))
from engines import make_engine

engine = make_engine(sys.argv[1], Path(sys.argv[2]))
engine.load(int(sys.argv[3]))
print(int(engine.feed([(5 + index * 7919) % 262144 for index in range(16)]).argmax()), flush=True)
