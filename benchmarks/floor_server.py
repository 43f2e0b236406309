"""The floor of serving: a Starlette route that parses the request, asks for the records and answers their bytes.

``python -m benchmarks.floor_server REDIS_URL``; it prints the URL it serves at, as ``fs serve`` does.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import redis.asyncio
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from featurestore.server.run import bind, server_config, url_of

VIEWS_OF = {"driver_id": ("driver_stats",), "customer_id": ("customer_spend",)}
WIDE_VIEWS_OF = {"customer_id": ("wide",)}


class FloorRequest(msgspec.Struct):
    entities: dict[str, list[int]]
    features: list[str] | None = None
    feature_service: str | None = None


def create_app(redis_url: str) -> Starlette:
    """Return the app: one route, nothing shared between requests."""
    client = redis.asyncio.Redis.from_url(redis_url)
    decode = msgspec.json.Decoder(FloorRequest).decode

    def route(views_of: dict[str, tuple[str, ...]]) -> Route:
        async def answer(request: Request) -> Response:
            asked = decode(await request.body())
            keys = [
                f"fs:bench:{view}:{{{entity}}}"
                for name, entities in asked.entities.items()
                for view in views_of[name]
                for entity in entities
            ]
            records = await client.mget(keys)
            return Response(b"".join(record for record in records if record is not None))

        return Route("/wide" if views_of is WIDE_VIEWS_OF else "/v1/online-features", answer, methods=["POST"])

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        await client.aclose()

    return Starlette(routes=[route(VIEWS_OF), route(WIDE_VIEWS_OF)], lifespan=lifespan)


def main() -> None:
    listening = bind("127.0.0.1", 0)
    config = server_config(lambda: create_app(sys.argv[1]))
    config.http = "httptools"  # uvicorn's own protocol, without our deadlines
    sys.stdout.write(f"Serving the floor at {url_of(listening)}\n")
    sys.stdout.flush()
    uvicorn.Server(config).run(sockets=[listening])


if __name__ == "__main__":
    main()
