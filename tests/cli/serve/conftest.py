"""A server on a scripted model: in this process, at a free port, with real sockets."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from specx.backends.scripted import ScriptedModel, SimulatedClock
from specx.backends.store import Store
from specx.cli.serve.gate import Policy
from specx.cli.serve.listen import UnixSocket, address_of, listen_tcp
from specx.cli.serve.routes import Api
from specx.cli.serve.run import Life, Places
from specx.engine.api.asks import Defaults
from specx.engine.learned.knowledge import Learned
from specx.engine.session import Session
from specx.engine.settings import Asked, SamplingSettings

STEPS = {"0": {str(n): 10.0 + n / 4 for n in range(1, 65)}}
PATIENCE = 60.0
TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
SONG = " the cat sat on a mat and the cat sat on a hat\n"


def session_of(*, texts=4, slow_ms=0.0, model_class=ScriptedModel, **options):
    """A session that likes to recite `SONG`, or one whose steps take `slow_ms` each on the wall clock."""
    clock = None if slow_ms else SimulatedClock()
    if slow_ms:  # nothing to recite, so that it takes long
        options = {"script": (), **options}
    costs = {64: slow_ms} if slow_ms else {1: 10.0, 64: 20.0}
    song = ScriptedModel(400).vocab.tokenize(SONG.encode(), add_special=False, parse_special=False)
    options = {"vocab_size": 400, "script": song, "peak": 0.95, "order": 3, "max_texts": texts, **options}
    model = model_class(clock=clock, step_costs=costs, **options)
    asked = Asked(Path("scripted.gguf"), store=False)
    learned = Learned(Store(None), model_key="model", cost_key="cost")
    ticks = time.perf_counter if clock is None else clock
    session = Session(model, asked, learned, name="scripted", chat_template=TEMPLATE, clock=ticks)
    session.staircase.load_json(STEPS)
    return session


class Served:
    """A running server.

    Attributes:
        url: where it is.
        client: an HTTP client for it.
        life, api: what runs.
        reported: exceptions that nobody has foreseen.
        logged: lines of the access log.
    """

    def __init__(self, load, *, policy, defaults, most_waiting, socket, idle_s):
        self.reported, self.logged = [], []
        self.api = Api(policy, defaults, self.reported.append, self.logged.append)
        tcp = listen_tcp("127.0.0.1", 0)
        self.url = address_of(tcp[0])
        self.port = tcp[0].getsockname()[1]
        self.places = Places(tcp, [UnixSocket(socket)] if socket else [])
        self.life = Life(self.api, self.places, load, most_waiting=most_waiting, idle_s=idle_s)
        self.problem = None
        self.thread = threading.Thread(target=self._run)
        self.thread.start()
        self.client = httpx.Client(base_url=self.url, timeout=PATIENCE, trust_env=False)

    def _run(self):
        try:
            self.life.run()
        except Exception as problem:  # noqa: BLE001 -- the test looks at it
            self.problem = problem

    @property
    def service(self):
        return self.api.service

    def ready(self):
        until(lambda: self.api.service is not None)
        return self

    def post(self, path, body, **options):
        return self.client.post(path, json=body, **options)

    def until(self, condition):
        """Wait for something."""
        until(condition)

    def quiet(self):
        """Wait until nothing is written or waits, and check that no room is lost."""
        until(lambda: self.service.writing + self.service.waiting == 0)
        assert all(slot.user is None for slot in self.service.session.slots)

    def stop(self):
        self.client.close()
        if self.thread.is_alive():
            self.life._in_loop(self.life.stop)
            self.thread.join(PATIENCE)
        assert not self.thread.is_alive()


def until(condition):
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


@pytest.fixture
def serve():
    """Starts servers; all are stopped at the end, and nothing unforeseen may have happened in them."""
    running = []

    def start(
        load=None,
        *,
        policy=None,
        defaults=None,
        most_waiting=64,
        socket=None,
        idle_s=None,
        **options,
    ):
        @contextmanager
        def loading():
            with (load or (lambda: session_of(**options)))() as session:
                yield session

        served = Served(
            loading,
            policy=policy or Policy(),
            defaults=defaults or Defaults(sampling=SamplingSettings(temperature=0.0), model="scripted"),
            most_waiting=most_waiting,
            socket=socket,
            idle_s=idle_s,
        )
        running.append(served)
        return served if load else served.ready()

    yield start
    for served in running:
        served.stop()
        assert served.reported == []


@pytest.fixture(name="session_of")
def _session_of():
    return session_of
