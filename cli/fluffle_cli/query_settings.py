"""The settings that commands share which query a federation and end."""

from pydantic import Field

from fluffle.settings import SharedSettings


class QuerySettings(SharedSettings):
    """Settings of a command that queries: it does not wait for a broker as long as a worker does."""

    connect_timeout_s: float = Field(
        5.0, gt=0, description="Seconds to wait for a broker that cannot be reached."
    )
