"""Run a web application in a thread."""

import threading
import time

import uvicorn
from starlette.types import ASGIApp


class ServerThread:
    """A server on a free port of this machine. Call `stop` at the end.

    app (ASGIApp): The application.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._server = uvicorn.Server(uvicorn.Config(app, "127.0.0.1", 0, log_level="warning"))
        self._thread = threading.Thread(target=self._server.run)
        self._thread.start()
        while not self._server.started and self._thread.is_alive():
            time.sleep(0.01)
        port = self._server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"

    def stop(self) -> None:
        """End the server."""
        self._server.should_exit = True
        self._thread.join()
