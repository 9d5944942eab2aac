"""The files of the page at GET /."""

from pathlib import Path

from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

PAGE = Path(__file__).parent / "page"
# The page uses only its own files and this server, and no other page can embed it.
POLICY = {
    "default-src": "'none'",
    "script-src": "'self'",
    "style-src": "'self'",
    "img-src": "'self'",
    "connect-src": "'self'",
    "base-uri": "'none'",
    "form-action": "'none'",
    "frame-ancestors": "'none'",
}
HEADERS = {
    "Content-Security-Policy": "; ".join(f"{name} {value}" for name, value in POLICY.items()),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    # Browsers ask whether a file has changed, so that they don't mix files of two versions.
    "Cache-Control": "no-cache",
}


class StaticPage(StaticFiles):
    """Serves the files of the page."""

    def __init__(self) -> None:
        super().__init__(directory=PAGE, html=True)

    async def get_response(self, path: str, scope: Scope) -> Response:
        """RETURNS (Response): The file, with headers that protect the page."""
        response = await super().get_response(path, scope)
        response.headers.update(HEADERS)
        return response
