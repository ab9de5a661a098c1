"""HDFS over HTTP (WebHDFS and HttpFS), by fsspec: where a firewall lets nothing else through."""

from typing import Any

import requests
from fsspec.caching import BaseCache
from fsspec.implementations.webhdfs import WebHDFS
from pyarrow import fs
from requests.adapters import HTTPAdapter

from fluffle.storage.errors import without_secrets

# To connect, and until the next bytes arrive. Without these, requests waits for ever.
TIMEOUTS_S = (5.0, 60.0)
DEFAULT_PORT = 9870
# What a DataNode says when the NameNode was started again: it asks over a connection that is gone, only once.
LOST_NAMENODE = "EOFException"


def web_hdfs_filesystem(host: str, port: int | None) -> fs.FileSystem:
    """Return the filesystem of this NameNode; FSSPEC_WEBHDFS_USER, _KERBEROS and others say how to log in."""
    return fs.PyFileSystem(fs.FSSpecHandler(_WebHdfs(host, port or DEFAULT_PORT)))


class _WebHdfs(WebHDFS):
    """Fsspec's WebHDFS with timeouts, times of modification, and errors that show no token."""

    # Another login in the environment is another filesystem.
    cachable = False

    def __init__(self, host: str, port: int, **settings: Any) -> None:
        super().__init__(host, port, **settings)
        for scheme in ("http://", "https://"):
            self.session.mount(scheme, _Bounded(self.url))
        self.session.hooks["response"].append(_refused)

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        return _with_time(super().info(path))

    def ls(self, path: str, detail: bool = False, **_: Any) -> list[Any]:
        infos = [_with_time(each) for each in super().ls(path, detail=True)]
        return infos if detail else [each["name"] for each in infos]

    def _open(self, path: str, mode: str = "rb", **settings: Any) -> Any:
        file = super()._open(path, mode, **settings)
        if mode == "rb":
            # Whoever reads here and there would have 5 MB read behind each place.
            file.cache = BaseCache(file.blocksize, file._fetch_range, file.size)
        return file

    def mv(self, path1: str, path2: str, **_: Any) -> None:
        # Without the option, a file that is there already stays, and nobody says so.
        self._call("RENAME", method="put", path=path1, destination=path2, renameoptions="OVERWRITE")


class _Bounded(HTTPAdapter):
    """Sends requests that do not wait for ever."""

    def __init__(self, namenode_url: str) -> None:
        super().__init__()
        self._namenode_url = namenode_url

    def send(self, *request: Any, **settings: Any) -> requests.Response:
        try:
            return self._answer(*request, **{**settings, "timeout": TIMEOUTS_S})
        except requests.RequestException as error:
            # The URL in its text may hold a delegation token.
            said = without_secrets(str(error))
            is_namenode = request[0].url.startswith(self._namenode_url)
            raise OSError(said if is_namenode else f"All DataNodes failed: {said}") from None

    def _answer(self, *request: Any, **settings: Any) -> requests.Response:
        answer = super().send(*request, **settings)
        is_read = request[0].method == "GET"
        if is_read and answer.status_code >= 400 and LOST_NAMENODE in answer.text:
            return super().send(*request, **settings)
        return answer


def _with_time(info: dict[str, Any]) -> dict[str, Any]:
    return {**info, "mtime": info["modificationTime"] / 1000}


def _refused(response: requests.Response, **_: Any) -> None:
    """Raise what the NameNode reports, without the URL, which may hold a delegation token."""
    if response.status_code < 400:
        return
    try:
        remote = response.json()["RemoteException"]
        kind, said = str(remote["exception"]), str(remote["message"])
    except (ValueError, KeyError, TypeError):
        kind, said = f"HTTP status {response.status_code}", str(response.reason)
    if kind == "FileNotFoundException":
        raise FileNotFoundError(said)
    if kind in ("AccessControlException", "SecurityException"):
        raise PermissionError(said)
    raise OSError(f"{kind}: {said}")
