"""Kills and freezes parts of a federation at random times, and starts again what is dead."""

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from federation import Federation, Part
from soak.memory import GROWTH_MB, RABBITMQ_GROWTH_MB, MemoryOfPart

from fluffle_cli.node import BrokerNode

HEARTBEAT_S = 3
# From much shorter than a heartbeat to well beyond the three after which RabbitMQ gives a part up.
FREEZE_S = (0.5, 12.0)
BROKER_FREEZE_S = (0.5, 6.0)
PAUSE_S = (1.0, 6.0)
BROKER_SHARE = 0.1
DEAD_FOR_S = (0.0, 2.0)
DELAYS_S = (0.05, 0.2, 0.8, 1.6)
AGGREGATOR = ("--buffer-size", "3", "--buffer-timeout", "2", "--heartbeat-s", str(HEARTBEAT_S))
OTHERS = ("--heartbeat-s", str(HEARTBEAT_S))


@dataclass
class Slot:
    """A place in the federation, and the process that has it now; `lives` counts them."""

    name: str
    start: Callable[[int], Part]
    # One worker and one aggregator are frozen but never killed: a leak needs time to show.
    may_be_killed: bool = True
    lives: int = 0
    part: Part | None = None
    born_s: float = 0.0
    thaws_s: float | None = None
    starts_s: float = 0.0

    @property
    def is_dead(self) -> bool:
        """Whether nothing runs here."""
        return self.part is None or self.part.process.poll() is not None


@dataclass
class Chaos:
    """All that happens to one federation; `say` tells each event to whoever looks on."""

    node: BrokerNode
    federation: Federation
    rng: random.Random
    say: Callable[[str], None]
    happened: Counter[str] = field(default_factory=Counter)
    memory: dict[str, MemoryOfPart] = field(default_factory=dict)
    died_by_itself: list[str] = field(default_factory=list)
    slots: list[Slot] = field(default_factory=list)
    _began: float = field(default_factory=time.monotonic)
    _broker_born_s: float = 0.0

    def __post_init__(self) -> None:
        """Make the slots: two aggregators, four workers, an evaluator."""
        for index in range(2):
            self.slots.append(Slot(f"aggregator {index}", self._aggregator(index), may_be_killed=index > 0))
        for site in range(len(DELAYS_S)):
            self.slots.append(Slot(f"worker {site}", self._worker(site), may_be_killed=site > 0))
        self.slots.append(Slot("evaluator", lambda _life: self.federation.evaluator(*OTHERS)))

    @property
    def now_s(self) -> float:
        """Seconds since the beginning."""
        return time.monotonic() - self._began

    def rage(self, seconds: float, *, look: Callable[[], None]) -> None:
        """Let things happen for so long; `look` is called once a second."""
        strikes_s = self.now_s + 10.0
        while self.now_s < seconds:
            self.tend()
            if self.now_s >= strikes_s:
                self._strike()
                strikes_s = self.now_s + self.rng.uniform(*PAUSE_S)
            look()
            time.sleep(1.0)

    def tend(self) -> None:
        """Start who is dead, thaw whose time is over, and look how much memory they use."""
        for slot in self.slots:
            if slot.is_dead:
                self._bury(slot)
                if self.now_s >= slot.starts_s:
                    slot.part, slot.born_s = slot.start(slot.lives), self.now_s
                    slot.lives += 1
            elif slot.thaws_s is not None and self.now_s >= slot.thaws_s:
                self._thaw(slot)
            if slot.part is not None:
                self._sample(slot.name, slot.part.process.pid, slot.born_s)
        self._sample("broker", self.node.pid, self._broker_born_s)

    def calm_down(self) -> None:
        """Thaw who is frozen and start who is dead: from now on nothing happens any more."""
        for slot in self.slots:
            slot.starts_s = 0.0
            if slot.thaws_s is not None and not slot.is_dead:
                self._thaw(slot)
        self.tend()

    def parts(self, kind: str) -> list[Part]:
        """Return the living parts whose slot begins with a word."""
        return [slot.part for slot in self.slots if slot.part and slot.name.startswith(kind)]

    def _strike(self) -> None:
        if self.rng.random() < BROKER_SHARE:
            self._strike_the_broker()
            return
        slot = self.rng.choice([slot for slot in self.slots if not slot.is_dead])
        if slot.part is None:
            return
        if slot.may_be_killed and self.rng.random() < 0.6:
            self._tell("kill", slot.name)
            slot.part.kill()
            slot.starts_s = self.now_s + self.rng.uniform(*DEAD_FOR_S)
        elif slot.thaws_s is None:
            seconds = self.rng.uniform(*FREEZE_S)
            self._tell("freeze", slot.name, seconds)
            slot.part.process.send_signal(signal.SIGSTOP)
            slot.thaws_s = self.now_s + seconds

    def _strike_the_broker(self) -> None:
        if self.rng.random() < 0.6:
            self._tell("kill", "broker")
            self.node.kill()
            self.node.restart()
            self._broker_born_s = self.now_s
            return
        seconds = self.rng.uniform(*BROKER_FREEZE_S)
        self._tell("freeze", "broker", seconds)
        os.killpg(self.node.pid, signal.SIGSTOP)
        try:
            time.sleep(seconds)
        finally:
            os.killpg(self.node.pid, signal.SIGCONT)

    def _bury(self, slot: Slot) -> None:
        if slot.part is not None and slot.part.process.returncode != -signal.SIGKILL:
            lines = slot.part.log.read_text().splitlines() or ["it said nothing"]
            self.died_by_itself.append(f"{slot.name}, code {slot.part.process.returncode}: {lines[-1][:300]}")
            self.say(f"ended by itself: {self.died_by_itself[-1]}")
        slot.part, slot.thaws_s = None, None

    def _thaw(self, slot: Slot) -> None:
        slot.thaws_s = None
        if slot.part is not None:
            with suppress(ProcessLookupError):
                slot.part.process.send_signal(signal.SIGCONT)

    def _sample(self, name: str, process_id: int, born_s: float) -> None:
        growth_mb = RABBITMQ_GROWTH_MB if name == "broker" else GROWTH_MB
        memory = self.memory.setdefault(name, MemoryOfPart(growth_mb=growth_mb))
        memory.sample(process_id, now_s=self.now_s, age_s=self.now_s - born_s)

    def _tell(self, what: str, whom: str, seconds: float | None = None) -> None:
        self.happened[f"{what} {whom.split(maxsplit=1)[0]}"] += 1
        self.say(f"{what} {whom}" if seconds is None else f"{what} {whom} for {seconds:.1f} s")

    def _aggregator(self, index: int) -> Callable[[int], Part]:
        # A life's log bears its name, and the next life must not write over it.
        return lambda life: self.federation.aggregator(f"aggregator-{index}-{life}", *AGGREGATOR)

    def _worker(self, site: int) -> Callable[[int], Part]:
        flags = ("--delay", str(DELAYS_S[site]), *OTHERS)
        return lambda _life: self.federation.worker(site, *flags, sites=len(DELAYS_S))
