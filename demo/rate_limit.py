"""So many requests in a second; the next is told to wait."""

import time
from collections import deque
from collections.abc import Callable
from typing import Any

from fastapi import HTTPException


def at_most(requests: int) -> Callable[..., Any]:
    """Return a FastAPI dependency that answers 429 to what is more in any second."""
    recent: deque[float] = deque(maxlen=requests)

    async def check() -> None:
        now = time.monotonic()
        if len(recent) == requests and now - recent[0] < 1:
            detail = f"more than {requests} requests in a second"
            raise HTTPException(429, detail, {"Retry-After": "1"})
        recent.append(now)

    return check
