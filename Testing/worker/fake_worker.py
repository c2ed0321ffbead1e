"""A real worker with a fake engine, whose model names say how it behaves. Started by the tests as a program."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import IO, Any

from medssl.errors import Cancelled, InputError
from medssl.events import Progress
from medssl.messages import Expect, Message, Predict, PredictVolume, Propagate, Refine, SegmentVolume
from medssl.results import SliceMask
from medssl.serving.engine import EngineRequest, LongRequest, Work
from medssl.serving.volume_store import VolumeStore
from medssl.volume import Volume, as_stack
from medssl.worker import Worker, claim_standard_streams

SLICE_SECONDS = float(os.environ.get("FAKE_WORKER_SLICE_SECONDS", "0.01"))
STAGES = ("coarse", "refined", "propagated", "final")


class FakeEngine:
    """Calls a slice's bright voxels the segment; takes `SLICE_SECONDS` for each."""

    device = "cpu"

    def __init__(self, outgoing: IO[bytes]) -> None:
        self._outgoing = outgoing
        self._encoded: set[str] = set()
        self.models: tuple[str, ...] = ()

    def compute(self, volume: Volume, request: LongRequest, cancelled: Callable[[], bool]) -> Work:
        match request:
            case Propagate():
                return self._propagate(volume, request)
            case Refine():
                return self._refine(request)
            case PredictVolume():
                return self._find(volume, ("",))
            case SegmentVolume():
                return self._find(volume, STAGES)

    def _propagate(self, volume: Volume, request: Propagate) -> Work:
        self.models = (request.model,)
        stack = as_stack(volume.voxels_kji, 0)
        for index in range(len(stack)):
            time.sleep(SLICE_SECONDS)
            if index == len(stack) // 2:
                self._misbehave(request.model)
            for reference in request.references:
                yield SliceMask(reference.segment, 0, index, stack[index] > 0, 0.5)
            yield Progress(index + 1, len(stack), (len(stack) - index) * SLICE_SECONDS)
        return {"slices": len(stack), "options": request.options}

    def _refine(self, request: Refine) -> Work:
        for index, mask in enumerate(request.coarse_kji):
            yield SliceMask(request.segment, 0, index, mask, 1.0)
        return {}

    def _find(self, volume: Volume, stages: tuple[str, ...]) -> Work:
        """One segment, "liver", stage by stage."""
        for stage in stages:
            for index, slice_hu in enumerate(volume.voxels_kji):
                time.sleep(SLICE_SECONDS)
                yield SliceMask("liver", 0, index, slice_hu > 0, 0.5, stage=stage)
                yield Progress(index + 1, len(volume.voxels_kji), None)
        return {}

    def predict(self, volume: Volume, request: Predict) -> tuple[SliceMask, dict[str, Any]]:
        prompt = request.prompt
        mask = as_stack(volume.voxels_kji, prompt.axis)[prompt.index] > 0
        answer = SliceMask(request.segment, prompt.axis, prompt.index, mask, 0.9)
        return answer, {"encoded": volume.content_hash in self._encoded}

    def encode_ahead(
        self, volume: Volume, request: Predict | Expect, waiting: Callable[[], Iterable[Message]]
    ) -> Iterator[None]:
        """One step, which never ends by itself if the model is "tireless"."""
        if request.model == "clumsy":
            raise ZeroDivisionError("ahead of its time")
        while request.model == "tireless" and not waiting():
            time.sleep(0.001)
        self._encoded.add(volume.content_hash)
        yield

    def bytes_needed(self, request: EngineRequest, volume: Volume) -> int:
        return 10**15 if request.model == "huge" else 0

    def bytes_available(self, device: str) -> int | None:
        return 2 * 10**9

    def forget(self, content_hash: str) -> None:
        pass

    def _misbehave(self, model: str) -> None:
        match model:
            case "chatty":
                print("stray text")
                sys.stdout.flush()
                os.write(1, b"from a C library")
                subprocess.run(["echo", "from a child"], check=True)
            case "greedy reader":
                assert sys.stdin.read() == ""
            case "refusing":
                raise InputError("The annotation is empty; draw the organ on one slice.")
            case "stopping":
                raise Cancelled("Stopped by the engine.")
            case "buggy":
                raise ZeroDivisionError("division\nby zero")
            case "out of memory":
                raise MemoryError("cannot allocate 9 GB")
            case "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            case "exiting":
                print("CUDA error: an illegal memory access", file=sys.stderr)
                sys.stderr.flush()
                os._exit(3)
            case "cut":
                self._outgoing.write(b"\x93MSSL\n\x01\x00")
                self._outgoing.flush()
                os._exit(0)
            case "garbled":
                self._outgoing.write(b"Welcome to the machine, please mind the step" * 10)
                self._outgoing.flush()
                time.sleep(60)
            case "busy":
                time.sleep(60)


if __name__ == "__main__":
    incoming, outgoing = claim_standard_streams()
    logging.basicConfig(stream=sys.stderr, level=logging.INFO)
    budget_bytes = int(os.environ.get("FAKE_WORKER_BUDGET", 1 << 30))
    Worker(FakeEngine(outgoing), incoming, outgoing, VolumeStore(budget_bytes)).run()
