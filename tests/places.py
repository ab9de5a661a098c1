"""Where tests put files: folders of their own at each kind of URL, and how a process logs in there."""

from dataclasses import dataclass
from getpass import getuser
from itertools import count

import pytest
from fsspec.config import conf, set_conf_env

from harness.hdfs import Hdfs
from harness.s3 import S3Server

SCHEMES = ("file", "hdfs", "webhdfs", "s3")
_numbers = count(1)


@dataclass(frozen=True, slots=True)
class Place:
    """A folder by its URL, which need not exist, and the variables with which it is reached."""

    url: str
    environment: dict[str, str]

    def log_in(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let this process reach it until the test ends."""
        for name, value in self.environment.items():
            monkeypatch.setenv(name, value)
        # It has read its variables when it was imported.
        settings: dict[str, dict[str, str]] = {}
        set_conf_env(settings, self.environment)
        for protocol, found in settings.items():
            monkeypatch.setitem(conf, protocol, found)


def place_of(scheme: str, request: pytest.FixtureRequest) -> Place:
    """Return a new folder; only the server that it needs is started."""
    folder = f"folder-{next(_numbers)}"
    if scheme == "file":
        return Place(f"file://{request.getfixturevalue('tmp_path')}/{folder}", {})
    if scheme == "s3":
        server: S3Server = request.getfixturevalue("s3")
        return Place(f"{server.url}/{folder}", server.environment)
    hdfs: Hdfs = request.getfixturevalue("hdfs")
    url = hdfs.url if scheme == "hdfs" else hdfs.webhdfs_url
    return Place(f"{url}/{folder}", {"FSSPEC_WEBHDFS_USER": getuser()})
