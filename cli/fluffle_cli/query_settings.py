"""What commands have in common that ask a federation something, answer and end."""

from __future__ import annotations

from pydantic import Field

from fluffle.settings import SharedSettings


class AskingSettings(SharedSettings):
    """Settings of whoever asks, and is not to wait for a broker as long as a worker does."""

    connect_timeout_s: float = Field(5.0, gt=0, description="Seconds to wait for a broker that is not there.")
