"""A server on this machine for the tests of what fetches and sends."""

import http.server
import threading
from contextlib import contextmanager
from types import SimpleNamespace


@contextmanager
def serving(handler, **state):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    server.state = SimpleNamespace(released=threading.Event(), **state)
    server.state.url = f"http://127.0.0.1:{server.server_port}"
    server.handle_error = lambda *args: None  # clients that leave are part of these tests
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server.state
    finally:
        server.state.released.set()
        server.shutdown()
        server.server_close()
        thread.join()
