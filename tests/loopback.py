"""Servers of the standard library in a thread of the test."""

import contextlib
import threading


@contextlib.contextmanager
def served(server):
    """Serves until the block ends, then closes the server."""
    with server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
