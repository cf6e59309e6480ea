"""Sessions: one process that remembers scans, found by a token. Triton runs this file, in one instance alone."""

import threading
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import numpy as np

import samkit.triton_models.python_backend as backend
from samkit.runtime.protocol import wire
from samkit.runtime.protocol.requests import read_request
from samkit.triton_models.served import Served
from samkit.triton_models.session_host import SessionHost

LOOK_SECONDS = 5.0
"""How often sessions that nobody uses are looked for and figures are shown, where nothing is asked."""


class TritonPythonModel:
    """What Triton calls. A request that waits for an encoder keeps nobody else waiting."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Read what is served here, and begin to look for sessions that nobody uses."""
        backend.keep_heap()
        served = Served.from_triton(args)
        backend.begin(args["model_name"], served.name)
        backend.open_log()
        self.host = SessionHost(served, served.runners())
        self.metrics = backend.Metrics(name=served.name)
        self.threads = backend.Threads(served.limits.threads)
        self.ends, self.news = False, threading.Event()
        self.looker = threading.Thread(target=self.look, daemon=True)
        self.looker.start()

    def execute(self, requests: list[Any]) -> None:
        """Hand every request to a thread, which answers it."""
        for request in requests:
            self.threads.answer(self.run, request)

    def run(self, request: Any) -> dict[str, np.ndarray]:
        """Return the output tensors of one request."""
        backend.check_open()
        token = backend.read_tensor(request, wire.TOKEN)
        tensors = {name: backend.read_tensor(request, name) for name in (*wire.VOLUMES, wire.AFFINE)}
        asked = read_request(backend.read_json(request, wire.REQUEST))
        answer, changed = self.host.answer(asked, None if token is None else wire.text(token), tensors)
        self.news.set()
        return {wire.ANSWER: wire.encode(answer.to_json()), wire.CHANGED: changed}

    def look(self) -> None:
        """Close what nobody uses and show figures, after answers and every few seconds; no failure ends that."""
        while not self.ends:
            self.news.wait(LOOK_SECONDS)
            self.news.clear()  # before the figures are read: an answer that comes while they are is shown next
            try:
                self.host.drop_idle()
                self.show()
            except Exception as error:  # its message may hold anything
                with suppress(Exception):
                    backend.log_error(f"{type(error).__name__} while sessions were looked after; they go on")

    def show(self) -> None:
        """Put the figures on the server's metrics page."""
        for name, kind, description, value, stage in self.host.figures():
            self.metrics.show(name, kind, description, value, stage=stage)

    def finalize(self) -> None:
        """Let the requests at work end."""
        self.threads.close()
        self.ends = True
        self.news.set()
        self.looker.join()
        backend.close_log()
