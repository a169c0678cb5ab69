"""Runtime: a model is compiled once on the machine it runs on; later starts map the result.

ONNX Runtime from 1.29 on reports to its maker from Linux too: importing it starts an uploading thread, in native code
that our network guard cannot see, and writes a device id into the user's home. It is off before it could begin
(docs/adr/0053).
"""

import os

os.environ["ORT_DISABLE_TELEMETRY"] = "1"
