"""A process whose logs nobody takes, or that may open no more files, goes on with what it can do."""

import asyncio
import os
import resource
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import httpx2
import psutil
import pytest
from private_server import free_port
from service import COMMAND, Service, environment, token

FILES = 64


def answers(url: str) -> bool:
    """Whether the service at this URL is ready, and takes a write."""
    headers = {"authorization": f"Bearer {token()}"}
    with httpx2.Client(base_url=url, headers=headers, trust_env=False, timeout=5) as client:
        if client.get("/health/ready").status_code != 200:
            return False
        return client.post("/warehouses", json={"name": "North"}).status_code == 201


def until_it_answers(url: str, *, seconds: float = 100.0) -> None:
    """Return as soon as it does."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            if answers(url):
                return
        except httpx2.TransportError:
            pass
        assert time.monotonic() < deadline, f"{url} did not answer in {seconds:g} s."
        time.sleep(0.1)


def test_logs_that_nobody_takes_stop_nobody(tmp_path: Path) -> None:
    """Fault F32: who read its standard error has gone; it serves on, and ends in time, with 0, when it is told to."""
    port = free_port()
    settings = {"store": f"sqlite:///{tmp_path}/stock.db", "broker": "memory://", "port": port}
    taken, given = os.pipe()
    process = subprocess.Popen([COMMAND, "serve"], env=environment(**settings), stderr=given, stdout=given)
    os.close(given)
    try:
        until_it_answers(f"http://127.0.0.1:{port}")
        os.close(taken)
        for _ in range(5):
            assert answers(f"http://127.0.0.1:{port}")
        process.terminate()
        assert process.wait(timeout=20) == 0
    finally:
        process.kill()
        process.wait()


@pytest.mark.skipif(sys.platform != "linux", reason="Limits of a running process are Linux's.")
async def test_more_connections_than_files_are_refused_for_a_moment(tmp_path: Path) -> None:
    """Fault F33: with 64 files it cannot take a hundred connections; when they have gone it serves again."""
    service = Service("serve", store=f"sqlite:///{tmp_path}/stock.db", broker="memory://")
    with service:
        assert answers(service.url)
        psutil.Process(service.pid).rlimit(resource.RLIMIT_NOFILE, (FILES, FILES))
        with ExitStack() as crowd:
            for _ in range(100):
                crowd.enter_context(socket.create_connection(("127.0.0.1", service.port), timeout=5))
            await asyncio.sleep(1)
            assert psutil.Process(service.pid).num_fds() <= FILES
        await asyncio.to_thread(until_it_answers, service.url)
        assert service.running
