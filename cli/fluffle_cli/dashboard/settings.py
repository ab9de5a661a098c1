"""What can be set about the live page."""

from typing import ClassVar

from pydantic import Field

from fluffle.management import ManagementSettings


class DashboardSettings(ManagementSettings):
    """Flags of `fluffle dashboard`, keys of the table [dashboard]."""

    part: ClassVar[str] = "dashboard"
    is_service: ClassVar[bool] = True

    dashboard_host: str = Field(
        "127.0.0.1",
        description="Address to listen on. Unless it is loopback, the page requires the token in the printed "
        "address.",
    )
    dashboard_port: int = Field(
        8089, ge=0, le=65535, description="Port to listen on; 0 for any that is free."
    )
