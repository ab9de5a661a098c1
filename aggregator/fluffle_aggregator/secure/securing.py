"""What the leader does under secure aggregation: it closes buffers, asks the helpers, and gives up. Pure.

Masked updates stay unacked until a version contains their sum. The closed sum lies in the head, so that the
next leader goes on from it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from fluffle.broker import Delivery
from fluffle.errors import WireError
from fluffle.events import Awaiting, Closed, Contradicted, Unmasked
from fluffle.record import Evaluation, Rank
from fluffle.secure.closing import NotOpened, decode_answer, digest_of
from fluffle.secure.committee import Committee
from fluffle.secure.measured import evaluation_of
from fluffle.secure.plan import MOST_WHY, LastSum
from fluffle.secure.sums import SumRecord
from fluffle.secure.surveyed import SurveySums
from fluffle.update import WeightUpdate
from fluffle_aggregator.effects import Ask, Effect, GiveBack, PublishSum, Tell, info, warning
from fluffle_aggregator.gates.gate import Refusal
from fluffle_aggregator.gates.share import OVER_SHARE
from fluffle_aggregator.global_model import GlobalModel
from fluffle_aggregator.secure.opening import AwaitedSum, OpenedSum, sound_sum
from fluffle_aggregator.secure.state import NOT_OPENED, SecureState
from fluffle_aggregator.secure.taking import spend, take_sum, take_survey
from fluffle_aggregator.secure.waiting import Waiting
from fluffle_aggregator.surveying import told_of_survey

UNSOUND_SUM = "unsound-sum"
# Helpers that were not asked first answer too when they are asked again, so not much earlier than needed.
ASK_AGAIN_AFTER_S, ASK_AGAIN_AT_MOST_EVERY_S, TIMES_LAST_OPENING = 0.5, 10.0, 3.0
REMIND_EVERY_S = 10.0
# How long helpers that have not answered are waited for when the others do not agree, or a sum is in doubt:
# at least, and at most if the first answers took long.
DECIDE_WITHIN_S, DECIDE_AT_LAST_WITHIN_S = 60.0, 600.0
MOST_COMPLAINTS = 100
# After so many times 20 minutes, an update of a synchronous round is not waited for any more.
MOST_RELEASES = 3


@dataclass(frozen=True, slots=True, eq=False)
class Settled:
    """What follows when a sum is awaited no more: the model contains it, or it is given up.

    `evaluation` is what its sites have measured, if they have.
    """

    effects: list[Effect]
    is_in_model: bool
    evaluation: Evaluation | None = None


class Securing:
    """The sums of one leader, and what waits for them."""

    def __init__(
        self,
        model: GlobalModel,
        committee: Committee,
        sums: Sequence[SumRecord],
        timeout_s: float,
        *,
        clock: float,
    ) -> None:
        """Go on from what was found in the head: the next sum, or the last one if it was given up.

        A buffer that does not fill within `timeout_s` is used as it is, if the helpers open that.
        """
        self.awaited: AwaitedSum | None = None
        # The sums in the head that were closed for the next version.
        self._closed: list[SumRecord] = []
        self._committee = committee
        self._timeout_s = timeout_s
        self._closed_at = self._asked_at = self._reminded_at = clock
        self._ask_after_s = ASK_AGAIN_AFTER_S
        self._releases = 0
        self._complaints: set[str] = set()
        state = _state(model)
        self.waiting = Waiting(model.strategy.buffer_size, state.share_of_one)
        last = state.last_sum
        for each in sums:
            close = each.close
            if close.epoch != last.epoch:
                continue
            if close.number == last.number and last.given_up:
                reason, _, detail = last.given_up.partition(": ")
                state.give_up(close, reason, detail)
            if close.number == last.number + 1 and close.version == model.version + 1:
                self._closed.append(each)
        if self._closed:
            # Of two leaders, one of which had lost the lead, the other one has asked the helpers more likely.
            self._await(model, max(reversed(self._closed), key=lambda each: each.close.term))

    def _await(self, model: GlobalModel, record: SumRecord) -> None:
        self.awaited = AwaitedSum(record, self._committee)
        _state(model).awaits(record.close)

    def needs_the_next_version(self, model: GlobalModel) -> bool:
        """Whether the next version is that of a sum: updates are in the buffer, or a sum waits to be opened.

        The answers to a survey make no version so soon that nobody could be told of anything before.
        """
        return self.awaited is not None or (bool(self.waiting.held) and model.survey is None)

    def begin(self) -> list[Effect]:
        """Ask for the openings of a sum that the leader before has closed."""
        if self.awaited is None:
            return []
        close = self.awaited.record.close
        line = info("going on with the sum that the leader before has closed", version=close.version)
        return [line, Ask(close)]

    def keep(self, delivery: Delivery, update: WeightUpdate, now: float) -> list[Effect] | Refusal:
        """Keep an update that cannot come into the buffer now; refuse it if too many wait already."""
        if self.awaited is None:
            if self.waiting.keep_for_later(delivery, update, now):
                return []
            detail = f"{update.id.worker} has given its share of this buffer, and of the next one"
            return Refusal(OVER_SHARE, detail)
        if update.id in self.awaited.record.close:
            self.waiting.hold(delivery, now)
        else:
            self.waiting.set_aside(delivery, update, now)
        return []

    def next_waiting(self, model: GlobalModel) -> Delivery | None:
        """Return an update that may come into the buffer now; None when a sum is awaited, or none waits."""
        if self.awaited:
            return None
        state = _state(model)

        def has_room(update: WeightUpdate) -> bool:
            return not state.has_to_wait(update, model.weigh(update).factor)

        # What others have given since may have made room.
        return self.waiting.next_for_later(has_room) or self.waiting.next_aside()

    def end_round(self, model: GlobalModel, now: float, *, held_from: float, is_short: bool) -> list[Effect]:
        """Give the updates of a synchronous round back that cannot be completed; nothing if it still can.

        It `is_short` of an update that was refused. One that does not come for an hour is lost.
        """
        is_over = (is_short or self._releases >= MOST_RELEASES) and model.survey is None
        buffer = _state(model).buffer
        if not (is_over and len(buffer) and buffer.why_not() and now - held_from >= self._timeout_s):
            return []
        self._releases = 0
        return self.release(model, "an update of this round was refused, or never came")

    def when_due(self, model: GlobalModel, now: float, held_from: float, elapsed_s: float) -> list[Effect]:
        """Close the buffer if it is time to, or say what it waits for; it began to fill at `held_from`.

        `elapsed_s` is how long the federation has had a leader: it ends a survey.
        """
        buffer = _state(model).buffer
        if not len(buffer):
            return []
        why_not, waited_s = buffer.why_not(), now - held_from
        is_late = waited_s >= self._timeout_s
        if model.survey:
            is_late = model.survey.aim.seconds is not None and elapsed_s >= model.survey.aim.seconds
        if not why_not and (buffer.is_full or is_late):
            return self._close(model, now)
        if self.waiting.is_overdue(now):
            self._releases += 1
            return self.release(model, "the buffer does not fill")
        if waited_s < self._timeout_s or now - self._reminded_at < REMIND_EVERY_S:
            return []
        self._reminded_at = now
        what, more = ("the survey", "answers") if model.survey else ("the buffer", "updates")
        missing = why_not or f"more {more}"
        line = warning(f"{what} waits", updates=len(buffer), because=missing, seconds=round(waited_s))
        return [line, Tell(Awaiting(waited_s, missing))]

    def release(self, model: GlobalModel, because: str) -> list[Effect]:
        """Give all updates back to RabbitMQ, which delivers them again."""
        self.awaited = None
        _state(model).drop()
        model.in_buffer.clear()
        return _returned(self.waiting.release_all(), because)

    def end_survey(self, model: GlobalModel) -> list[Effect]:
        """Give back the answers to a survey that nobody asks for any more."""
        _state(model).end_survey()
        return self.release(model, "there is no survey any more")

    def _close(self, model: GlobalModel, now: float) -> list[Effect]:
        state = _state(model)
        last = state.last_sum
        record = state.buffer.closed(
            federation=model.record.federation,
            number=last.number + 1,
            previous=last.digest,
            rank=Rank(model.term, model.version + 1),
            asked=self._asked(last),
        )
        self._await(model, record)
        self._closed = [record]
        model.in_buffer.clear()
        self.waiting.begin_next_buffer()
        self._releases = 0
        self._closed_at = self._asked_at = self._reminded_at = now
        # The last one has perhaps waited an hour for its helpers.
        usual_s = min(ASK_AGAIN_AT_MOST_EVERY_S, TIMES_LAST_OPENING * last.opened_s)
        self._ask_after_s = max(ASK_AGAIN_AFTER_S, usual_s)
        close = record.close
        return [PublishSum(record), Ask(close), Tell(Closed(close.version, len(close.updates)))]

    def _asked(self, last: LastSum) -> tuple[str, ...]:
        """Return a member of each group: one that has opened the last sum, if there is one; in turns."""
        chosen = []
        for number, members in enumerate(self._committee.groups):
            at_work = [each for each in members if each in last.helpers] or members
            chosen.append(at_work[(last.number + number) % len(at_work)])
        return tuple(chosen)

    def take_answer(self, answer: Delivery) -> list[Effect]:
        """Take in what a helper answers, or complain about it."""
        if self.awaited is None:
            return []
        try:
            found = decode_answer(answer.body, self.awaited.record.close)
        except WireError as error:
            return self._complain(f"an answer of the RabbitMQ user {answer.user!r} cannot be read: {error}")
        is_news = isinstance(found, NotOpened) and found.helper not in self.awaited.refusals
        if wrong := self.awaited.take_in(found, answer.user):
            return self._complain(wrong)
        if isinstance(found, NotOpened) and is_news and found.helper in self.awaited.refusals:
            line = "a helper does not open the sum"
            return [warning(line, helper=found.helper, rule=found.rule, because=found.detail)]
        return []

    def _complain(self, what: str) -> list[Effect]:
        if what in self._complaints or len(self._complaints) >= MOST_COMPLAINTS:
            return []
        self._complaints.add(what)
        return [warning("an answer to a close record is wrong", because=what)]

    def go_on(self, model: GlobalModel, now: float) -> Settled | list[Effect]:
        """Open the awaited sum, or give it up; a list is what to do while it waits."""
        awaited = self.awaited
        if awaited is None:
            return []
        if awaited.is_hopeless and self._is_decided(awaited, now):
            if known := self._closed_before(awaited):
                self._await(model, known)
                said = info("going on with another sum, which the helpers know", version=known.close.version)
                back = _returned(self.waiting.release_all(), "they may be in the other sum")
                return [said, *back, Ask(known.close)]
            return Settled(self._give_up(model, awaited, _not_opened(awaited)), is_in_model=False)
        if opened := sound_sum(awaited, model.record.layout.size, model.plan.privacy):
            effects = self._take(model, awaited, opened, now)
            return Settled(effects, is_in_model=True, evaluation=_evaluation_in(awaited, opened))
        if not awaited.unsound or awaited.is_hopeless:
            return self._remind(awaited, now)
        if not awaited.is_in_doubt and not awaited.has_all_answers:
            # One that answers wrongly must not spoil it, nor let its workers be blamed.
            awaited.doubt(now)
            self._asked_at, self._ask_after_s = now, ASK_AGAIN_AFTER_S
            line = "the sum is unsound: asking all helpers, since one of them may have answered wrongly"
            return [warning(line, because=awaited.unsound), Ask(awaited.record.close)]
        if self._is_decided(awaited, now):
            detail = f"the sum for version {awaited.record.close.version} is discarded: {awaited.unsound}"
            return Settled(self._give_up(model, awaited, Refusal(UNSOUND_SUM, detail)), is_in_model=False)
        return self._remind(awaited, now)

    def _closed_before(self, awaited: AwaitedSum) -> SumRecord | None:
        """Return another sum for the same version that the helpers call the newest, None if there is none."""
        _, newest = awaited.newest_record or (0, "")
        others = (each for each in self._closed if each is not awaited.record)
        return next((each for each in others if digest_of(each.close) == newest), None)

    def _is_decided(self, awaited: AwaitedSum, now: float) -> bool:
        """Return whether a sum is to be given up now: no other helper could change that, or none does."""
        if awaited.has_all_answers or (awaited.is_hopeless and awaited.newest_record):
            return True
        if awaited.undecided_from is None:
            awaited.undecided_from = now
        usual_s = TIMES_LAST_OPENING * (awaited.undecided_from - self._closed_at)
        within_s = min(DECIDE_AT_LAST_WITHIN_S, max(DECIDE_WITHIN_S, usual_s))
        return now - awaited.undecided_from >= within_s

    def _remind(self, awaited: AwaitedSum, now: float) -> list[Effect]:
        """Ask the helpers again when they are late, and say what is missing."""
        effects: list[Effect] = []
        if now - self._asked_at >= self._ask_after_s:
            self._asked_at = now
            self._ask_after_s = min(ASK_AGAIN_AT_MOST_EVERY_S, 2 * self._ask_after_s)
            effects.append(Ask(awaited.record.close))
        # They come again at once, and are kept for the sum that contains them, or for the next one.
        effects += _returned(self.waiting.release_overdue(now), "the helpers do not answer")
        if now - self._reminded_at >= REMIND_EVERY_S:
            self._reminded_at = now
            waited_s = now - self._closed_at
            effects += [
                warning("the sum waits for helpers", seconds=round(waited_s), missing=awaited.missing),
                Tell(Awaiting(waited_s, f"helpers: {awaited.missing}")),
            ]
        return effects

    def _take(
        self, model: GlobalModel, awaited: AwaitedSum, opened: OpenedSum | SurveySums, now: float
    ) -> list[Effect]:
        """Take an opened sum into the model."""
        state, close, opened_s = _state(model), awaited.record.close, now - self._closed_at
        effects: list[Effect] = []
        if isinstance(opened, SurveySums):
            effects = told_of_survey(len(close.updates), opened.rows, take_survey(model, close, opened))
        else:
            take_sum(model, awaited.record, opened)
        state.drop()
        state.last_sum = self._last(awaited, awaited.helpers, opened_s)
        self.awaited = None
        return [
            *_told_of_suspects(awaited),
            info(
                "sum opened",
                version=close.version,
                updates=len(close.updates),
                helpers=list(awaited.helpers),
                seconds=round(opened_s, 3),
            ),
            Tell(Unmasked(close.version, opened_s, ", ".join(awaited.helpers))),
            *effects,
        ]

    def _give_up(self, model: GlobalModel, awaited: AwaitedSum, refusal: Refusal) -> list[Effect]:
        """Refuse all updates of the sum: because helpers do, or because it is unsound."""
        last = replace(
            self._last(awaited, (), 0.0), given_up=f"{refusal.reason}: {refusal.detail}"[:MOST_WHY]
        )
        # Helpers that have gone on from another record say from which. Those that open sums know this one.
        if refusal.reason == NOT_OPENED and (newest := awaited.newest_record) and newest[0] >= last.number:
            last = replace(last, number=newest[0], digest=newest[1])
        state, close = _state(model), awaited.record.close
        if awaited.record.shape and model.survey:
            model.survey.begin_again()
        state.last_sum = last
        state.give_up(close, refusal.reason, refusal.detail)
        spend(model, awaited.record)
        # Unless it may be a helper that has spoiled the sum.
        if refusal.reason == UNSOUND_SUM and (not awaited.suspects or awaited.has_all_answers):
            model.contributors.note_suspected({each.id.worker for each in close.updates})
        line = warning(
            "the sum is given up", version=close.version, reason=refusal.reason, because=refusal.detail
        )
        return [*_told_of_suspects(awaited), line, *self.release(model, "their sum is given up")]

    def _last(self, awaited: AwaitedSum, helpers: Sequence[str], opened_s: float) -> LastSum:
        close = awaited.record.close
        return LastSum(
            epoch=close.epoch,
            number=close.number,
            digest=awaited.digest,
            helpers=tuple(helpers),
            opened_s=opened_s,
        )


def _state(model: GlobalModel) -> SecureState:
    if model.secure is None:
        raise ValueError("this federation has no secure aggregation")
    return model.secure


def _returned(tags: tuple[int, ...], because: str) -> list[Effect]:
    if not tags:
        return []
    return [info("updates return to the queue", updates=len(tags), because=because), GiveBack(tags)]


def _evaluation_in(awaited: AwaitedSum, opened: OpenedSum | SurveySums) -> Evaluation | None:
    if isinstance(opened, SurveySums):
        return None
    return evaluation_of(opened.measured, awaited.record.plan, federation=awaited.record.close.federation)


def _not_opened(awaited: AwaitedSum) -> Refusal:
    said = sorted(f"{name} ({one.rule}: {one.detail})" for name, one in awaited.refusals.items())
    return Refusal(NOT_OPENED, f"helpers do not open the sum: {'; '.join(said)}")


def _told_of_suspects(awaited: AwaitedSum) -> list[Effect]:
    """Say which helpers have answered otherwise than others, if any have."""
    if not (suspects := awaited.suspects):
        return []
    version = awaited.record.close.version
    line = (
        "helpers have answered with wrong masks: look at their machines, or replace them"
        if awaited.is_in_doubt and not awaited.unsound
        else "helpers contradict each other, and nobody knows which of them is right: look at their machines"
    )
    told = Tell(Contradicted(version, ", ".join(suspects)))
    return [warning(line, version=version, helpers=list(suspects)), told]
