"""The settings of `fluffle-spark.py`, the program for spark-submit."""

from pathlib import Path
from typing import ClassVar

from pydantic import Field

from fluffle.settings import ManagementUrl, SharedSettings
from fluffle_worker.settings import TASK


class SparkSettings(SharedSettings):
    """Flags of `fluffle-spark.py`, keys of the table [spark]."""

    part: ClassVar[str] = "spark"
    is_service: ClassVar[bool] = True

    task: str = Field(description=f"Task to train, whose module is sent to the executors: {TASK}")
    data_url: str = Field(
        description="The data, as Spark reads it: a file, folder or pattern at hdfs://, s3a://, file:// and "
        "others. Names that end in .csv or .json are read as such, all others as Parquet.",
        json_schema_extra={"flag": "--data"},
    )
    label: str = Field(description="Column of the labels or targets.")
    features: str | None = Field(
        None, description="Columns of the inputs, with commas between them. Default: all others."
    )
    workers: int | None = Field(None, ge=1, description="Divide the rows evenly among so many sites.")
    site_column: str | None = Field(None, description="Make each value of this column a site.")
    waves: int = Field(
        0,
        ge=0,
        description="Let more sites than Spark has slots take turns: a site ends after so many confirmed "
        "updates, and another one begins. With 0, all sites train at once.",
    )
    with_aggregator: bool = Field(
        False,
        description="Run the aggregator beside the driver, with the settings of its table [aggregator].",
    )
    with_evaluator: bool = Field(
        False, description="Run an evaluator beside the driver, with the settings of its table [evaluator]."
    )
    password_folder: Path | None = Field(
        None,
        description="Folder on the driver's machine with the password of each site's RabbitMQ user, in a "
        "file of the site's name, as `fluffle broker setup` makes it.",
    )
    make_users: bool = Field(
        False,
        description="Make a RabbitMQ user for each site, and remove it at the end. The broker URL's login "
        "must be an administrator's.",
    )
    management_url: ManagementUrl = None
    out: str | None = Field(
        None, description="Where to write the table of the sites as Parquet, such as hdfs://.../result."
    )

    @property
    def feature_names(self) -> list[str] | None:
        """The columns of the inputs; None for all others than the label."""
        return None if self.features is None else [name.strip() for name in self.features.split(",")]
