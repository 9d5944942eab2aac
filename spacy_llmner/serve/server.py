"""Run the application with uvicorn."""

import socket
from typing import List, Optional

import uvicorn
from fastapi import FastAPI

# Seconds for which answers can still be sent when the server ends.
GRACE = 10


class Server(uvicorn.Server):
    """A server that ends its answers when it shuts down, instead of waiting for them.

    app (FastAPI): The application.
    host (str): Address to listen on.
    port (int): Port to listen on; 0 for any free one.
    """

    def __init__(self, app: FastAPI, host: str, port: int) -> None:
        super().__init__(uvicorn.Config(app, host, port, timeout_graceful_shutdown=GRACE))
        self.app = app

    async def shutdown(self, sockets: Optional[List[socket.socket]] = None) -> None:
        """Called by uvicorn."""
        self.app.state.service.shut_down()
        await super().shutdown(sockets)
