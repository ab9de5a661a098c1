"""What evaluators and sites report to the leader: judged, held until a record has it, waited for at the end.

Pure: the leader performs the effects that each method returns.
"""

from collections.abc import Sequence

from fluffle.broker import Delivery
from fluffle.events import Evaluated
from fluffle.record import Evaluation, not_finite
from fluffle.sites import MEAN, SiteEvaluation, site_metric_in
from fluffle.topology import Topology
from fluffle_aggregator.effects import Ack, Effect, Log, LookFor, Tell, info, warning
from fluffle_aggregator.gates.gate import Refusal
from fluffle_aggregator.gates.limits import Limits
from fluffle_aggregator.gates.site import site_refusal
from fluffle_aggregator.global_model import GlobalModel
from fluffle_aggregator.goal import is_impossible
from fluffle_aggregator.intake import evaluation_refusal

# How long an evaluator and the sites have for the last model, besides three times their last evaluation.
PATIENCE_S = 30.0
# A site from which nothing came for so long has left if RabbitMQ knows no process of its name. At the end,
# when nothing else is to come, only those are asked after that are still waited for.
SILENT_S, SILENT_AT_THE_END_S, LOOK_EVERY_S, MOST_LOOKED_FOR = 30.0, 2.0, 5.0, 20
# After so many updates without any report of a site, and again whenever they have doubled, the log warns.
UPDATES_WITHOUT_REPORT = 10
MOST_NAMED = 5


class Reports:
    """What has been reported since the last commit, and who still has to report the last model."""

    def __init__(
        self, model: GlobalModel, topology: Topology, limits: Limits, *, most_held: int, clock: float
    ) -> None:
        """Hold so many messages at most: with the updates they must not fill the prefetch window."""
        self._model = model
        self._topology = topology
        self._limits = limits
        self._most_held = most_held
        # Where nobody evaluates, the closing version is not waited for.
        is_awaited = bool(model.record.closing and not model.record.sites)
        self._has_evaluator = model.record.evaluation is not None or is_awaited
        # The tags of what is noted but not committed yet: of each sender the newest, oldest first.
        self._held: dict[str, int] = {}
        self._held_from = self._closing_from = self._looked_at = clock
        self._warned_at = UPDATES_WITHOUT_REPORT
        self._has_warned_of_metric = False
        # The sites of whose evaluation the log has said that it is not finite.
        self._not_finite: set[str] = set()

    def note_hello(self, delivery: Delivery, name: str) -> None:
        """Note that somebody evaluates, if this hello says so, or may have begun to train."""
        is_evaluator = delivery.exchange == self._topology.evaluations_in.name
        self._has_evaluator |= is_evaluator
        if self._model.private and not is_evaluator:
            self._model.private.note_hello(name)

    def take_in(
        self, delivery: Delivery, found: Evaluation | SiteEvaluation, *, clock: float, elapsed_s: float
    ) -> list[Effect] | Refusal:
        """Take in what an evaluator or a site has measured, or say why it does not count."""
        model, limits = self._model, self._limits
        if isinstance(found, Evaluation):
            refused = evaluation_refusal(delivery, found, model, self._topology)
            sender = f"evaluator {found.evaluator}"
        else:
            refused = site_refusal(delivery, found, model, self._topology, limits)
            sender = found.worker
        if refused:
            return refused
        if model.record.finished:
            return [Ack((delivery.tag,))]
        if isinstance(found, Evaluation):
            is_new = model.note_evaluation(found)
            effects = self._of_evaluator(found) if is_new else []
        else:
            is_new = model.sites.take_in(found, elapsed_s=elapsed_s)
            effects = self._of_site(found) if is_new else []
        if not is_new:
            return [Ack((delivery.tag,))]
        if not self._held:
            self._held_from = clock
        # Only the newest of a sender waits for the record that has it.
        replaced = self._held.pop(sender, None)
        self._held[sender] = delivery.tag
        return [*effects, *([] if replaced is None else [Ack((replaced,))])]

    def make_room(self, updates: int) -> list[Effect]:
        """Ack reports until, with so many updates held, there is room in the prefetch window.

        They are in memory, and in the next record. If the leader dies before that, the next one learns from
        each site's next report.
        """
        too_many = len(self._held) + updates - self._most_held
        tags = [self._held.pop(sender) for sender in list(self._held)[: max(0, too_many)]]
        return [Ack(tuple(tags))] if tags else []

    def release(self) -> tuple[int, ...]:
        """Return the tags of what a record has now."""
        tags, self._held = tuple(self._held.values()), {}
        return tags

    def release_overdue(self, *, clock: float, after_s: float) -> list[Effect]:
        """Ack what was held for so long, while nobody trains: held longer, it would cost the channel."""
        return [Ack(self.release())] if self._held and clock - self._held_from >= after_s else []

    def look_for_silent(self, *, clock: float, elapsed_s: float) -> list[Effect]:
        """Ask now and then whether the workers of silent sites are still there."""
        sites, is_over = self._model.sites, bool(self._model.over)
        if clock - self._looked_at < LOOK_EVERY_S:
            return []
        self._looked_at = clock
        silent = sites.silent(elapsed_s=elapsed_s, for_s=SILENT_AT_THE_END_S if is_over else SILENT_S)
        if is_over:
            missing = set(sites.missing(self._model.version))
            silent = [site for site in silent if site in missing]
        elif self._model.private:
            silent = self._model.private.late
        return [LookFor(tuple(silent[:MOST_LOOKED_FOR]))] if silent else []

    def forget(self, absent: Sequence[str]) -> list[Effect]:
        """Let sites that have left no longer count."""
        if self._model.private:
            self._model.private.forget(absent)
            return []
        self._model.sites.forget(absent)
        line = "a site has left: what it measured last no longer counts"
        return [info(line, worker=site) for site in absent]

    def warn_of_no_report(self, updates: int) -> list[Effect]:
        """Warn while the goal needs evaluations, and none comes."""
        model, goal = self._model, self._model.goal
        by_sites = model.plan.sites_decide
        of_sites = model.sites.reports or (model.secure and model.draft.site_evaluation)
        is_reported = bool(of_sites) or (not by_sites and model.draft.evaluation is not None)
        is_needed = goal.target is not None or goal.patience is not None
        if not is_needed or is_reported or updates < self._warned_at:
            return []
        self._warned_at = 2 * updates
        how = "start the workers with --local-validation 0.2, or give the task validation_data"
        line = warning(
            f"no site evaluates, so that the goal cannot be reached: {how}"
            if by_sites
            else f"nobody evaluates, so that the goal cannot be reached: start fluffle evaluator; or {how}",
            goal=str(goal.target or f"patience {goal.patience}"),
            updates=updates,
        )
        return [line]

    @property
    def is_complete(self) -> bool:
        """Whether nobody has to report the newest version any more."""
        model, evaluation = self._model, self._model.draft.evaluation
        is_evaluated = evaluation is not None and evaluation.version >= model.version
        return (is_evaluated or not self._has_evaluator) and not model.sites.missing(model.version)

    @property
    def is_expected(self) -> bool:
        """Whether somebody will report the last model once it is published."""
        model, evaluation = self._model, self._model.draft.evaluation
        is_evaluated = evaluation is not None and evaluation.version == model.version
        return (self._has_evaluator and not is_evaluated) or bool(model.sites.reports)

    def begin_closing(self, clock: float) -> None:
        """Wait from now on for those who report the last model."""
        self._closing_from = clock

    def end_closing(self, clock: float) -> list[Effect] | None:
        """Return what there is to say once all have reported the last model, or took too long; else None."""
        model, evaluation = self._model, self._model.draft.evaluation
        slowest_s = max(
            [each.evaluate_s for each in model.sites.reports.values()]
            + [each.evaluate_s for each in (evaluation,) if each]
            + [0.0]
        )
        # An evaluation may take as long as the one before, after one that may just have begun.
        is_patient = clock - self._closing_from < PATIENCE_S + 3 * slowest_s
        if not self.is_complete and is_patient:
            return None
        effects: list[Effect] = []
        waited_s = round(clock - self._closing_from)
        if self._has_evaluator and not (evaluation and evaluation.version >= model.version):
            line = "the last model is not evaluated: no evaluator has reported"
            effects.append(warning(line, waited_s=waited_s))
        if missing := model.sites.missing(model.version):
            line = "the last model is not evaluated at some sites"
            effects.append(warning(line, sites=_some(missing), waited_s=waited_s))
        if last := model.sites.last_evaluation(model.draft, model.goal, model.version):
            effects += self._note_site_evaluation(last, is_last=True)
        return effects

    def _of_evaluator(self, found: Evaluation) -> list[Effect]:
        self._has_evaluator = True
        model = self._model
        metrics = {name: round(value, 4) for name, value in found.metrics.items()}
        effects: list[Effect] = [
            Tell(Evaluated(found.version, found.metrics)),
            info("evaluated", version=found.version, held=model.draft.target_held, metrics=metrics),
        ]
        if bad := not_finite(found.metrics):
            said = {"version": found.version, "metrics": ", ".join(bad)}
            if model.goal.lost(found.metrics):
                line = "an evaluation is not finite: it counts as one that misses the target"
                effects.append(warning(line, **said, in_a_row=model.draft.not_finite_held))
            else:
                line = "metrics are not finite on which neither target nor best version depends"
                effects.append(warning(line, **said))
        return [*effects, *self._warn_of_metric(found)]

    def _of_site(self, found: SiteEvaluation) -> list[Effect]:
        metrics = {each.name: round(each.value, 4) for each in found.metrics}
        fields = {"worker": found.worker, "version": found.version, "metrics": metrics}
        effects: list[Effect] = [Log("DEBUG", "a site has evaluated", fields)]
        bad = not_finite({each.name: each.value for each in found.metrics if each.count})
        if bad and found.worker not in self._not_finite:
            line = "a site's evaluation is not finite: until it is, a target of it counts as missed"
            said = {"version": found.version, "metrics": ", ".join(bad)}
            effects.append(warning(line, worker=found.worker, **said))
        (self._not_finite.add if bad else self._not_finite.discard)(found.worker)
        if dropped := self._model.sites.dropped:
            line = "a record has no room for the evaluations of so many sites: the oldest no longer count"
            effects.append(warning(line, sites=_some(dropped)))
        model = self._model
        if not model.over and (made := model.sites.evaluation(model.draft, model.goal)):
            effects += self._note_site_evaluation(made)
        return effects

    def note_of_sum(self, made: Evaluation) -> list[Effect]:
        """Take in what the sites of a sum have measured, if it is of a newer version than the last one.

        Version 0 does not count: nobody has trained it.
        """
        before = self._model.draft.site_evaluation
        if self._model.over or made.version <= (before.version if before else 0):
            return []
        if wrong := [name for name, value in made.metrics.items() if is_impossible(name, value)]:
            line = "a site of the sum claims what cannot be, and the evaluation does not count"
            return [warning(line, version=made.version, metrics=", ".join(wrong))]
        effects = self._note_site_evaluation(made)
        if bad := not_finite(made.metrics):
            line = "a metric is not finite at a site of the sum"
            effects.append(warning(line, version=made.version, metrics=", ".join(bad)))
        return effects

    def _note_site_evaluation(self, made: Evaluation, *, is_last: bool = False) -> list[Effect]:
        model = self._model
        model.note_site_evaluation(made, is_last=is_last)
        of_goal = {each.metric for each in model.goal.yardsticks}
        shown = {
            name: round(value, 4)
            for name, value in made.metrics.items()
            if name.startswith(MEAN) or name in of_goal
        }
        return [
            Tell(Evaluated(made.version, made.metrics, "sites")),
            info(
                "evaluated by the sites",
                version=made.version,
                **({} if model.secure else {"sites": len(model.sites.reports)}),
                held=model.draft.target_held,
                metrics=shown,
            ),
            *self._warn_of_metric(made),
        ]

    def _warn_of_metric(self, made: Evaluation) -> list[Effect]:
        """Warn once when what was evaluated lacks the metric that counts."""
        goal = self._model.goal
        is_by_sites = any(name.startswith(MEAN) for name in made.metrics)
        if self._has_warned_of_metric or goal.by_sites not in {None, is_by_sites}:
            return []
        lacking = [each.metric for each in goal.yardsticks if each.metric not in made.metrics]
        has_none = goal.patience is not None and goal.yardstick(made.metrics) is None
        if not lacking and not has_none:
            return []
        self._has_warned_of_metric = True
        there = ", ".join(sorted({site_metric_in(name) for name in made.metrics})) or "nothing"
        if lacking:
            line = "no evaluation has the metric that counts: name another one in --target or --best"
            return [warning(line, wanted=lacking[0], there=there)]
        line = "nothing says by which metric to judge whether anything gets better: give --best"
        return [warning(line, there=there)]


def _some(sites: Sequence[str]) -> str:
    more = f" and {len(sites) - MOST_NAMED} more" if len(sites) > MOST_NAMED else ""
    return ", ".join(sites[:MOST_NAMED]) + more
