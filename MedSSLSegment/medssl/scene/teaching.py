"""Cases, training runs and models, as a front end shows them: ask, poll, look at the fields.

    desk = TeachDesk(session)
    desk.refresh()
    while desk.is_waiting: desk.poll()
    desk.cases, desk.models, desk.runs

Everything happens in the worker (`medssl.client`); nothing here waits. A run goes on when the front end closes, and is
in `runs` when it comes back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..cases import Vouched
from ..errors import InputError, MedSSLError, WorkerDied
from ..segmentation import Segment
from .background import Task
from .layers import LabelStack, Layer
from .nodes import patient_of

if TYPE_CHECKING:
    from .session import Session

__all__ = ["Curve", "Proposal", "TeachDesk"]

_Facts = dict[str, Any]


@dataclass(frozen=True)
class Proposal:
    """What would be vouched for if the chosen volume became a case."""

    segments: tuple[Segment, ...]
    vouched: tuple[Vouched, ...]
    ids: tuple[str, ...]
    """Ids of the segments, in the same order."""

    def text(self) -> str:
        """For a person, e.g. "liver: slices 12, 40"."""
        lines = [f"{v.segment}: slices {', '.join(str(n) for n in v.indices)}" for v in self.vouched]
        return "\n".join(lines)


@dataclass(frozen=True)
class Curve:
    """A number over the steps of a run, for a plot."""

    name: str
    steps: tuple[float, ...]
    values: tuple[float, ...]


class TeachDesk:
    """What the worker keeps, and what it trains.

    Args:
        session: its client does the work; its nodes become cases.
        store: case store on the worker's machine; empty = the usual one.
    """

    def __init__(self, session: Session, store: str = "") -> None:
        self._session = session
        self._store = store
        self._waiting: list[tuple[Any, Callable[[_Facts], None]]] = []
        self._packing: Task[Callable[[], None]] | None = None
        self.cases: list[_Facts] = []
        self.models: list[_Facts] = []
        self.promptable: list[_Facts] = []
        self.runs: list[_Facts] = []
        self.encoders: list[_Facts] = []
        self.methods: list[_Facts] = []
        self.backbones: list[_Facts] = []
        self.estimate = ""
        """What pre-training with the settings last asked about would take, in one line, or why that cannot be said;
        empty before it is known."""
        self._estimating: Any = None
        self.run: _Facts | None = None
        """The run being followed."""
        self.events: list[_Facts] = []
        """What it has said so far."""
        self.picture: Any = None
        """(H, W, 3) uint8, the newest it has made; None before the first."""
        self._picture_step = -1
        self.message = ""
        """One sentence: what was done last, or why not."""
        self._death = ""
        """How the worker was said to have ended while an answer was waited for; empty once that is no news any more."""
        self._died_in_look = False
        self._looking: Any = None
        """The newest request of `look`, which nobody has asked for."""

    @property
    def is_waiting(self) -> bool:
        """Whether `poll` has something to take."""
        return bool(self._waiting) or self._packing is not None

    def poll(self) -> None:
        """Take the answers that have arrived; an error becomes the message."""
        try:
            if self._packing is not None and self._packing.done:
                task, self._packing = self._packing, None
                task.result()()
        except MedSSLError as error:
            self.message = str(error)
        for ticket, take in [each for each in self._waiting if each[0].done]:
            self._waiting.remove((ticket, take))
            try:
                summary = ticket.result().summary
                self._note_life(ticket)
                take(summary)
            except MedSSLError as error:
                if isinstance(error, WorkerDied):
                    self._death, self._died_in_look = str(error), ticket is self._looking
                self._note_failure(ticket, str(error))

    def _note_life(self, ticket: Any) -> None:
        """The worker answers: that it had ended is no news any more.

        What a person has asked for and did not get stays said until they ask for something else.
        """
        if ticket is self._looking and not self._died_in_look:
            return
        if self._death and self.message == self._death:
            self.message = ""
        self._death = ""

    def _note_failure(self, ticket: Any, why: str) -> None:
        """Say why a request failed, where its answer would have been."""
        if ticket is self._estimating:
            self.estimate, self.message = why, ""
        else:
            self.message = why

    def _ask(self, ticket: Any, take: Callable[[_Facts], None]) -> None:
        self._waiting.append((ticket, take))

    @property
    def _client(self) -> Any:
        return self._session.client

    # What there is

    def refresh(self) -> None:
        """Ask for cases, models, runs, encoders and methods."""
        self._ask(self._client.list_cases(self._store), lambda facts: self._take("cases", facts))
        self._ask(self._client.list_models(), self._take_models)
        self._ask(self._client.list_runs(), lambda facts: self._take("runs", facts))
        self._ask(self._client.list_encoders(), lambda facts: self._take("encoders", facts))
        self._ask(self._client.list_methods(), self._take_methods)

    def _take(self, name: str, facts: _Facts) -> None:
        setattr(self, name, list(facts[name]))
        if facts.get("problems"):
            self.message = facts["problems"][0]

    def _take_methods(self, facts: _Facts) -> None:
        self._take("methods", facts)
        self.backbones = list(facts["backbones"])

    def _take_models(self, facts: _Facts) -> None:
        self._take("models", facts)
        self.promptable = list(facts["promptable"])

    @property
    def best_encoder(self) -> str:
        """Path of the encoder that fine-tuning starts from unless told otherwise; empty as long as none is known."""
        return str(self.encoders[0]["path"]) if self.encoders else ""

    # Cases

    def propose(self) -> Proposal:
        """The slices of the chosen segmentation that were drawn, corrected or accepted.

        Raises:
            InputError: there are none.
        """
        survey = self._session.survey
        if survey is None or not survey.drawn:
            raise InputError("No slice is drawn yet; paint or accept at least one before you teach with it.")
        known = {s.id: s for s in self._session.segments()}
        ids = tuple(i for i in survey.drawn if i in known)
        segments = tuple(
            Segment(known[i].name, label, known[i].color_rgb) for label, i in enumerate(ids, start=1)
        )
        if len({s.name for s in segments}) < len(segments):
            raise InputError("Two segments have the same name; rename one before you teach with them.")
        vouched = tuple(
            Vouched(known[i].name, survey.axis, tuple(survey.drawn[i]), origin="drawn") for i in ids
        )
        return Proposal(segments, vouched, ids)

    def add_case(self, proposal: Proposal) -> None:
        """Put the chosen volume and what was proposed into the case store, or update the case it is already.

        Segments of that case which the chosen segmentation does not teach stay in it as they are.
        """
        session = self._session
        volume, node = session.volume(), session.segmentation_node
        layers, patient = Layer.of_all(node, proposal.ids, volume), patient_of(session.volume_node)

        def pack() -> Callable[[], None]:
            stack = LabelStack(volume.shape_kji, layers)
            known = next((c for c in self.cases if c["volume_hash"] == volume.content_hash), None)
            return lambda: self._send_case(volume, patient, stack, proposal, known)

        self.message = "Putting the case together."
        self._packing = Task(pack)

    def _send_case(
        self, volume: Any, patient: str, stack: LabelStack, proposal: Proposal, known: _Facts | None
    ) -> None:
        annotation = stack.labels_kji, proposal.segments, proposal.vouched
        if known is None:
            ticket = self._client.add_case(volume, *annotation, patient=patient, store=self._store)
        else:
            ticket = self._client.update_case(known["id"], *annotation, store=self._store)
        smaller = [proposal.segments[label - 1].name for label in stack.gave_way()]
        self._ask(ticket, lambda facts: self._case_kept(facts, smaller))

    def _case_kept(self, facts: _Facts, gave_way: Sequence[str]) -> None:
        self.message = f"Kept: {facts['case']['summary']}"
        if gave_way:
            names = " and ".join(gave_way)
            self.message += f". Where {names} and a smaller segment overlap, only the smaller one is taught."
        self._ask(self._client.list_cases(self._store), lambda listed: self._take("cases", listed))

    def remove_case(self, case_id: str) -> None:
        """Take a case out of the store; the store keeps it aside."""
        self._ask(self._client.remove_case(case_id, store=self._store), self._case_removed)

    def _case_removed(self, facts: _Facts) -> None:
        self.message = f"Removed; it is kept aside as {facts['removed']}."
        self._ask(self._client.list_cases(self._store), lambda listed: self._take("cases", listed))

    # Runs

    def finetune(self, settings: Mapping[str, Any]) -> None:
        """Begin to fine-tune on the case store; fields of `FinetuneConfig`, e.g. {"minutes": 10.0}."""
        self.message = "Starting to fine-tune."
        store = {"cases": self._store} if self._store else {}
        self._ask(self._client.start_finetune({**store, **settings}), self._run_began)

    def ask_estimate(self, settings: Mapping[str, Any]) -> None:
        """Ask what pre-training would take, before it begins; `estimate` has it after a while.

        Args:
            settings: as for `pretrain`.
        """
        self.drop_estimate()
        self.message = "Measuring a few steps; the scans are read for that."
        self._estimating = self._client.estimate_pretrain(dict(settings))
        self._ask(self._estimating, self._take_estimate)

    @property
    def is_estimating(self) -> bool:
        """Whether an estimate is under way."""
        return self._estimating is not None and not self._estimating.done

    def drop_estimate(self) -> None:
        """Stop measuring, and forget what was measured: the settings have changed."""
        if self._estimating is not None and not self._estimating.done:
            self._estimating.cancel()
            self._waiting = [each for each in self._waiting if each[0] is not self._estimating]
            self.message = ""
        self._estimating, self.estimate = None, ""

    def _take_estimate(self, facts: _Facts) -> None:
        self.estimate, self.message = str(facts["estimate"]), ""

    def pretrain(self, settings: Mapping[str, Any]) -> None:
        """Begin to pre-train; fields of `PretrainConfig`, at least method and data."""
        self.drop_estimate()
        self.message = "Starting to pre-train."
        self._ask(self._client.start_pretrain(dict(settings)), self._run_began)

    def _run_began(self, facts: _Facts) -> None:
        self.message = ""
        self.follow(facts["run"]["path"])
        self._ask(self._client.list_runs(), lambda listed: self._take("runs", listed))

    def follow(self, path: str) -> None:
        """Follow a run from its beginning; call `look` every second or so."""
        self.run, self.events, self.picture, self._picture_step = None, [], None, -1
        self._read(path)

    def look(self) -> None:
        """Ask what is new in the run being followed; nothing while an answer is under way."""
        if self.run is not None and not self._waiting:
            self._looking = self._read(self.run["path"])

    def _read(self, path: str) -> Any:
        ticket = self._client.read_run(path, after_event=len(self.events), after_picture=self._picture_step)
        self._ask(ticket, self._take_run)
        return ticket

    def _take_run(self, facts: _Facts) -> None:
        was_running = self.run is not None and self.run["state"] == "running"
        self.run = facts["run"]
        if was_running and self.run is not None and self.run["state"] != "running":
            self.message = ""  # what was said meanwhile must not stand for how it ended
            if self.run["kind"] == "pretrain":  # there is an encoder more to start from
                self._ask(self._client.list_encoders(), lambda listed: self._take("encoders", listed))
        self.events[facts["first_event"] :] = facts["events"]
        if facts["picture"] is not None:
            self.picture, self._picture_step = facts["picture"], facts["picture_step"]
        if self.run is not None and self.run["message"]:
            self.message = self.run["message"]

    def curve(self, name: str) -> Curve:
        """A metric of the run being followed, e.g. "dice"; without a point before the first measurement."""
        points = [
            (float(event["step"]), float(event["values"][name]))
            for event in self.events
            if event["type"] == "metric" and name in event.get("values", {})
        ]
        return Curve(name, tuple(x for x, _ in points), tuple(y for _, y in points))

    def stop(self) -> None:
        """Have the run being followed save and stop after its step."""
        self._ask(self._client.stop_run(self._followed()), self._run_changed)

    def resume(self) -> None:
        """Go on with the run being followed."""
        self._ask(self._client.resume_run(self._followed()), self._run_changed)

    def adopt(self, name: str) -> None:
        """Keep what the run being followed has made as the next version of a model."""
        self._ask(self._client.adopt_run(self._followed(), name), self._version_changed)

    def _followed(self) -> str:
        if self.run is None:
            raise InputError("No run is being followed; choose one from the list.")
        return str(self.run["path"])

    def _run_changed(self, facts: _Facts) -> None:
        self.run = facts["run"]
        self._ask(self._client.list_runs(), lambda listed: self._take("runs", listed))

    # Models

    def use(self, version: str) -> None:
        """Go back, or forward, to a version, e.g. "liver:2"."""
        self._ask(self._client.use_model(version), self._version_changed)

    def _version_changed(self, facts: _Facts) -> None:
        self.message = f"{facts['version']['id']} is in use."
        self._ask(self._client.list_models(), self._take_models)
