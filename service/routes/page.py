"""`GET /`: the page to try a model in. Plain files, no outside resources."""

from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import FileResponse
from fastapi.staticfiles import StaticFiles

FOLDER = Path(__file__).parent.parent / "page"

router = APIRouter(include_in_schema=False)
assets = StaticFiles(directory=FOLDER)


@router.get("/")
async def page() -> FileResponse:
    """The page itself; its style and script come from /page."""
    return FileResponse(FOLDER / "index.html")
