"""An engine's process that only sends its settings back."""

from __future__ import annotations

import sys
from multiprocessing.connection import Connection

if __name__ == "__main__":
    connection: Connection = Connection(int(sys.argv[1]))
    connection.send(connection.recv())
