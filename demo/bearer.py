"""The check both servers make: does the caller bear the token?"""

import secrets
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import Depends, HTTPException
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer


def bearer_of(token: str) -> Callable[..., Any]:
    """Return a FastAPI dependency that answers 401 to everybody else."""
    scheme = HTTPBearer(auto_error=False)

    async def check(sent: Annotated[HTTPAuthorizationCredentials | None, Depends(scheme)]) -> None:
        given = sent.credentials if sent else ""
        if not secrets.compare_digest(given.encode(), token.encode()):
            detail = "send the header: Authorization: Bearer <token>"
            raise HTTPException(401, detail, {"WWW-Authenticate": "Bearer"})

    return check
