"""Which settings of an aggregator a simulation has, and which of them may end a run early."""

from typing import Final

from fluffle.settings import ServiceSettings
from fluffle_aggregator.sealed.settings import SealedSettings
from fluffle_aggregator.secure.settings import SecureSettings
from fluffle_aggregator.survey import SurveySettings

# What an aggregator needs for its broker and its process, and a simulation has not; and a target that holds
# for evaluations in a row, where a simulation's holds for seconds.
NOT_SIMULATED: Final = frozenset(
    {
        # The largest message limits how many updates a strategy keeps.
        *(ServiceSettings.model_fields.keys() - {"max_message_mib"}),
        *SurveySettings.model_fields,
        *SecureSettings.model_fields,
        *SealedSettings.model_fields,
        *("name", "management_url", "target_hold", "initial_model", "dp_secret"),
        *("data", "label"),
    }
)
# What may end a run before its time is over, so that those of a sweep with a target could not be compared.
ENDS_EARLY: Final = ("max_updates", "max_versions", "patience")
