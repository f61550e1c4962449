"""Serves the APIs and the market researcher's share on 127.0.0.1, in threads, and the brokers."""

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from threading import Thread

import uvicorn
from fastapi import FastAPI

from demo import crm, making, marketing, sharing, trends
from demo.listening import listen
from demo.streams import brokers

MARKETING_PORT = 8801
SHARING_PORT = 8802
TRENDS_PORT = 8803
CRM_PORT = 8804


@contextmanager
def upstream_systems(run: Path, any_port: bool) -> Iterator[dict[str, str]]:
    """Serve while the context lasts; give the environment that connects to all systems.

    `any_port` takes free ports; otherwise the default ones, of which a taken one ends the program.
    """
    names = ("marketing", "market_research", "trends", "crm")
    api_token, share_token, trends_key, crm_secret = (making.token(run, name) for name in names)
    with ExitStack() as stack:
        started = stack.enter_context(brokers.starting(run, any_port))
        campaigns = marketing.app(run / "marketing.json", api_token)
        api = stack.enter_context(_served(campaigns, MARKETING_PORT, any_port))
        shared = sharing.app(run / "market_research", share_token)
        share = stack.enter_context(_served(shared, SHARING_PORT, any_port))
        trending = trends.app(run / "trends.json", trends_key)
        trending_url = stack.enter_context(_served(trending, TRENDS_PORT, any_port))
        customers = crm.app(run / "crm.json", crm_secret)
        crm_url = stack.enter_context(_served(customers, CRM_PORT, any_port))
        yield {
            "POS_DATABASE_URL": f"sqlite:///{run / 'pos.db'}",
            "CATALOGUE_DIR": str(run / "catalogue"),
            "MEDIA_DIR": str(run / "media"),
            "MARKETING_API_URL": api,
            "MARKETING_API_TOKEN": api_token,
            "TRENDS_API_URL": trending_url,
            "TRENDS_API_KEY": trends_key,
            "CRM_API_URL": crm_url,
            "CRM_CLIENT_SECRET": crm_secret,
            "MARKET_RESEARCH_PROFILE": str(stack.enter_context(_profile(run, share, share_token))),
            **started(),
        }


@contextmanager
def _profile(run: Path, url: str, token: str) -> Iterator[Path]:
    """Write the share's profile: a lasting one for the default port, else one that goes again."""
    lasting = url.endswith(f":{SHARING_PORT}")
    suffix = "" if lasting else f".{url.rpartition(':')[2]}"
    file = run / f"market_research{suffix}.share"
    making.write_private(file, sharing.profile(url, token))
    try:
        yield file
    finally:
        if not lasting:
            file.unlink(missing_ok=True)


@contextmanager
def _served(app: FastAPI, port: int, any_port: bool) -> Iterator[str]:
    """Run the app in a thread on a port that is already ours; give its address."""
    listener = listen(port, any_port)
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=2)
    server = uvicorn.Server(config)
    thread = Thread(target=server.run, kwargs={"sockets": [listener]}, name=url, daemon=True)
    thread.start()
    try:
        while not server.started and thread.is_alive():
            time.sleep(0.005)
        yield url
    finally:
        server.should_exit = True
        thread.join()
