"""A client in a process of its own: ``python load.py plan.json answers.jsonl`` makes the calls of a plan.

Every answer becomes a line as soon as it is there, so that what a client has seen is known whatever dies afterwards.
It says when it is ready and begins when it is told to; see ``clients.py``.
"""

import asyncio
import json
import random
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import httpx2

PATIENCE_SECONDS = 40.0
TIMEOUT_SECONDS = 30.0


class Call(NamedTuple):
    """A request to be made; a retry carries the same key."""

    method: str
    path: str
    body: Any
    key: str


class Answer(NamedTuple):
    """What came back for a call: a status and a body, or, where the connection failed, neither."""

    key: str
    status: int | None
    body: str
    headers: dict[str, str]
    error: str = ""

    @property
    def definite(self) -> bool:
        """Whether there is nothing to retry."""
        return self.status not in (None, 503)

    @property
    def data(self) -> Any:
        """What a success holds."""
        return json.loads(self.body)["data"]

    @property
    def code(self) -> str:
        """What a refusal is called."""
        return str(json.loads(self.body)["code"])


async def main(plan: dict[str, Any], answers: TextIO) -> None:
    """Make the plan's calls, each as soon as it is due and a connection is free."""
    limits = httpx2.Limits(max_connections=plan["connections"])
    authorization = {"authorization": f"Bearer {plan['token']}"}
    async with httpx2.AsyncClient(
        limits=limits, headers=authorization, timeout=TIMEOUT_SECONDS, trust_env=False
    ) as client:
        print("ready", flush=True)
        if not sys.stdin.readline():
            return
        started = time.monotonic()
        gap = 1 / plan["per_second"] if plan["per_second"] else 0.0
        calls = iter([(started + number * gap, url, Call(*call)) for number, (url, call) in enumerate(plan["calls"])])

        async def connection() -> None:
            for due, url, call in calls:
                await asyncio.sleep(due - time.monotonic())
                patience = time.monotonic() + PATIENCE_SECONDS if plan["retry"] else 0.0
                while not await _ask(client, url, call, answers) and time.monotonic() < patience:
                    await asyncio.sleep(random.uniform(0.1, 0.4))

        await asyncio.gather(*(connection() for _ in range(plan["connections"])))


async def _ask(client: httpx2.AsyncClient, url: str, call: Call, answers: TextIO) -> bool:
    """Make the call once, write what came of it, and tell whether that is definite."""
    # The correlation id is part of a refusal: with one of its own a replay would not read the same.
    headers = {"idempotency-key": call.key, "x-correlation-id": call.key}
    try:
        response = await client.request(call.method, url, json=call.body, headers=headers)
        answer = Answer(call.key, response.status_code, response.text, dict(response.headers))
    except httpx2.TransportError as error:
        answer = Answer(call.key, None, "", {}, repr(error))
    answers.write(json.dumps(answer._asdict()) + "\n")
    return answer.definite


if __name__ == "__main__":
    with Path(sys.argv[2]).open("a", buffering=1) as file:
        asyncio.run(main(json.loads(Path(sys.argv[1]).read_text()), file))
