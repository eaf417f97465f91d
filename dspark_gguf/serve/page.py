"""The chat page at ``/``, one document: a policy allows its own script and style alone."""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import HTMLResponse

router = APIRouter()


@router.get("/", include_in_schema=False)
async def page() -> HTMLResponse:
    """The page."""
    text, policy = _page()
    headers = {
        "Content-Security-Policy": policy,
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
        "Cache-Control": "no-cache",
    }
    return HTMLResponse(text, headers=headers)


@cache
def _page() -> tuple[str, str]:
    here = Path(__file__)
    text, script = (here.with_suffix(end).read_text(encoding="utf-8") for end in (".html", ".js"))
    text = text.replace("<script></script>", f"<script>\n{script}</script>")
    policy = (
        f"default-src 'none'; script-src {_hash(text, 'script')}; "
        f"style-src {_hash(text, 'style')}; "
        "img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )
    return text, policy


def _hash(page: str, element: str) -> str:
    """The hash of the page's only such element, as a Content-Security-Policy has it."""
    [text] = re.findall(f"<{element}>(.*?)</{element}>", page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return f"'sha256-{digest}'"
