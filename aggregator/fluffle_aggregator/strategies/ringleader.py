"""Ringleader: rounds in which each worker makes one step. Take it when slow workers have data of their own.

As with ace and ca2fl, every step is a mean over all workers; but a slow worker's update is never older than
two rounds, because the model stands still until each worker has sent one. The repeats of fast workers are not
lost: they make their worker's mean less noisy.
"""

from typing import ClassVar

from fluffle_aggregator.cached_buffers import MeanOfAll
from fluffle_aggregator.round_table import RoundTable
from fluffle_aggregator.strategies.cached import KeepingSettings
from fluffle_aggregator.strategies.strategy import StepsSettings, Strategy
from fluffle_aggregator.transforms import ServerRate, Sgd


class RingleaderSettings(KeepingSettings, StepsSettings, ServerRate):
    """x <- x + (eta / n) * mean over the n workers of the mean of their updates of this round.

    A round collects until each of the n workers of the round before has sent an update. That last arrival
    makes a step, and then the next one of each other worker does, once it is added to its worker's mean. What
    a worker sends after its step is collected for the next round. Each update makes a version, though the
    model moves with n of them in a round only.

    The paper's steps use gradients, and its gamma is at most 1 / (8 * n * L): 1 / n is a part of the step
    here, as for ace. It has a fixed set of workers; here a new one takes part from the next round on, and one
    that has left is waited for until `forget_after` says otherwise. A worker here may train once more from
    the version that it had, where the paper's gets the new one at once. The theory is for single gradients,
    and says nothing of local steps, weights by examples or int8.

    Source: Maranjyan and Richtárik, "Ringleader ASGD: The First Asynchronous SGD with Optimal Time Complexity
    under Data Heterogeneity" (ICLR 2026, arXiv 2509.22860). Of the paper itself the abstract and summaries
    were read, and public code of its experiments, which all agree on the rounds described here.
    """

    named: ClassVar[str] = "ringleader"
    summary: ClassVar[str] = "each update by itself, in rounds of one step for each worker"

    def make(self) -> Strategy:
        """See StrategyKind."""
        rate = 1.0 if self.server_learning_rate is None else self.server_learning_rate
        return Strategy(
            RingleaderSettings.named,
            self.make_weigh(),
            # A momentum would move the model between the steps too.
            transforms=(Sgd(rate),),
            keeping=self.make_keeping(in_rounds=True),
            cached_rule=MeanOfAll(RoundTable),
            normalizes_steps=bool(self.normalize_steps),
        )
