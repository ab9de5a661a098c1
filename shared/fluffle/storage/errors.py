"""What filesystems and their libraries report, as one sentence without secrets."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from fluffle.errors import FluffleError, StorageError

MAX_DETAIL = 300
# What follows a question mark in a URL may be a token; what stands before an @ may be a password.
_QUERY = re.compile(r"\?[^\s'\")]*=[^\s'\")]*")
_USER = re.compile(r"(?<=//)[^/\s@]*@")

# What libraries say, and what it means; the first that fits counts.
_MEANINGS: tuple[tuple[str, str], ...] = (
    (
        r"safe ?mode",
        "the NameNode is in safe mode: wait until it has left it, or ask who runs the cluster",
    ),
    (
        r"All DataNodes failed|No active nodes|BlocksNotFound|could only be written to 0 of|BlockMissing"
        r"|Failed to complete file|Failed to find datanode",
        "no DataNode answers that has its blocks, or takes new ones: see whether the DataNodes run",
    ),
    (
        r"NO_SUCH_BUCKET|bucket does not exist|Bucket '[^']*' not found",
        "there is no such bucket: correct its name, or create it",
    ),
    (
        r"ACCESS_DENIED|INVALID_ACCESS_KEY_ID|SIGNATURE_DOES_NOT_MATCH|HTTP status 40[13]|InvalidToken"
        r"|INVALID_CLIENT_TOKEN_ID|REQUEST_EXPIRED|ExpiredToken|InvalidAccessKeyId",
        "the object store refuses the access: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or "
        "AWS_PROFILE, to credentials with a right to it",
    ),
    (
        r"AccessControlException|Permission denied",
        "this user has no right to it: ask for it, or be another one (for HDFS with HADOOP_USER_NAME, or a "
        "Kerberos ticket)",
    ),
    (
        r"GSSAPI|Kerberos|SASL|No valid SASL|AuthenticationException|SPNEGO",
        "the cluster wants another login: get a Kerberos ticket with kinit, and let HADOOP_CONF_DIR name the "
        "folder with the cluster's core-site.xml",
    ),
    (
        r"StandbyException|state standby",
        "this NameNode is on standby: name the active one, or the name service",
    ),
    (
        r"No NameNode hosts found",
        "no port stands in the URL, and no configuration has a name service of this name: write the port, as "
        "in hdfs://namenode:8020/path, or let HADOOP_CONF_DIR name the folder with hdfs-site.xml",
    ),
    (
        r"Could not resolve|Name or service not known|failed to lookup address|NameResolutionError"
        r"|nodename nor servname|Temporary failure in name resolution",
        "its host name is unknown: correct the URL, or AWS_ENDPOINT_URL where that names the host",
    ),
    (
        r"Connection refused|Could not connect|Failed to connect|NewConnectionError|Connection reset"
        r"|disconnected|Network is unreachable|No route to host|Connection aborted|RemoteDisconnected"
        r"|EOFException",
        "nothing answers there: see whether it runs, and whether host and port are right",
    ),
    (
        r"[Tt]imed? ?out|Timeout was reached|too slow",
        "it does not answer in time: see whether it runs, and try again",
    ),
    (r"No space left|DSQuotaExceeded|QuotaExceeded", "there is no space left: free some, or write elsewhere"),
)


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Convert what a library raises in this block to a StorageError; `what` is what failed, with the URL."""
    try:
        yield
    except FluffleError:
        raise
    except FileNotFoundError as error:
        raise StorageError(f"{what}: there is no such file or folder") from error
    except IsADirectoryError as error:
        raise StorageError(f"{what}: it is a folder, and a file is expected") from error
    except PermissionError as error:
        raise StorageError(f"{what}: {_meaning(f'Permission denied {error}')}") from error
    except OSError as error:
        raise StorageError(f"{what}: {_meaning(str(error) or type(error).__name__)}") from error


def _meaning(said: str) -> str:
    for pattern, meaning in _MEANINGS:
        if re.search(pattern, said):
            return meaning
    return without_secrets(said)


def without_secrets(said: str) -> str:
    """Return what a library said in one short line, without the queries and users of URLs."""
    line = " ".join(_USER.sub("", _QUERY.sub("", said)).split())
    return line if len(line) <= MAX_DETAIL else f"{line[:MAX_DETAIL]} ..."
