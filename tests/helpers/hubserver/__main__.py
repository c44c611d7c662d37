"""``python -m hubserver FOLDER [PORT]``: a Hub with one user, alice; prints where it is."""

import sys
from pathlib import Path

from hubserver.server import HubServer

server = HubServer(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0)
print(f"HF_ENDPOINT={server.endpoint} HF_TOKEN={server.user('alice')}", flush=True)
server.serve_forever()
