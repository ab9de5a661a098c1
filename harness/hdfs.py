"""A private HDFS for tests and demos: a real NameNode and DataNode, on loopback, in a folder of their own.

`scripts/setup.sh hdfs` brings what they are made of. They end with the process that started them, even if
that one is killed. The user who starts them is the superuser, as in every HDFS; others may only read.
"""

import json
import os
import signal
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self
from xml.sax.saxutils import escape

from hdfs_native import Client, WriteOptions

from fluffle import guard
from fluffle.errors import ConfigError
from fluffle_cli.rabbitmq_server import LOOPBACK, free_ports
from harness.federation import ROOT, wait_until
from harness.java import find_java

HADOOP = ROOT / ".hadoop"
START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 10.0
NAMENODE = "org.apache.hadoop.hdfs.server.namenode.NameNode"
DATANODE = "org.apache.hadoop.hdfs.server.datanode.DataNode"
# Short-lived and small: quick to start matters more than quick to run.
_JVM = ("-Xmx256m", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Djava.net.preferIPv4Stack=true")
# A client's library with old copies of what the servers need: those of the servers come first.
_LAST_JAR = "hadoop-client-runtime"
_LOG4J = """log4j.rootLogger=INFO,console
log4j.appender.console=org.apache.log4j.ConsoleAppender
log4j.appender.console.target=System.err
log4j.appender.console.layout=org.apache.log4j.PatternLayout
log4j.appender.console.layout.ConversionPattern=%d{ISO8601} %p %c{2}: %m%n
"""


@dataclass
class Hdfs:
    """A NameNode and a DataNode, each of which can be killed and started again; `with` stops both."""

    folder: Path
    namenode_port: int
    http_port: int
    datanode_ports: tuple[int, int, int]
    _processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @classmethod
    def start(cls, folder: Path) -> Self:
        """Start an empty HDFS in an empty folder, and wait until files can be written: about 4 s.

        Raises ConfigError if Java or HDFS is not on this machine.
        """
        with free_ports(5) as ports:
            namenode_port, http_port, *others = ports
            hdfs = cls(folder.resolve(), namenode_port, http_port, (others[0], others[1], others[2]))
            hdfs._write_configuration()
            with (hdfs.folder / "format.log").open("wb") as log:
                command = hdfs._java(NAMENODE, "-format", "-nonInteractive")
                if subprocess.run(command, cwd=hdfs.folder, stdout=log, stderr=log, check=False).returncode:
                    raise AssertionError(f"HDFS cannot be formatted:\n{hdfs._log('format')}")
            try:
                hdfs._launch("namenode", NAMENODE)
                hdfs._launch("datanode", DATANODE)
                hdfs.wait_until_it_serves()
            except BaseException:  # Ctrl-C too: without this the processes would stay behind
                hdfs.stop()
                raise
        return hdfs

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """Where hdfs-native and Spark find it."""
        return f"hdfs://{LOOPBACK}:{self.namenode_port}"

    @property
    def webhdfs_url(self) -> str:
        """Where clients without Hadoop's protocol find it; a request needs a user's name to write."""
        return f"webhdfs://{LOOPBACK}:{self.http_port}"

    def set_safe_mode(self, state: Literal["enter", "leave"]) -> None:
        """Let the NameNode refuse all changes, or allow them again; about a second each."""
        self.admin("-safemode", state)

    def admin(self, *arguments: str) -> str:
        """Run `hdfs dfsadmin` and return what it prints."""
        command = self._java("org.apache.hadoop.hdfs.tools.DFSAdmin", *arguments)
        ended = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, check=False)
        if ended.returncode:
            raise AssertionError(f"hdfs dfsadmin {' '.join(arguments)}: {ended.stdout}{ended.stderr}")
        return ended.stdout

    def kill_namenode(self) -> None:
        """End the NameNode by SIGKILL; what it has stored stays."""
        self._end("namenode", signal.SIGKILL)

    def start_namenode(self) -> None:
        """Start it again at the same ports; `wait_until_it_serves` waits for it."""
        self._launch("namenode", NAMENODE)

    def kill_datanode(self) -> None:
        """End the DataNode by SIGKILL; its blocks stay. The NameNode notices after 12 s."""
        self._end("datanode", signal.SIGKILL)

    def start_datanode(self) -> None:
        """Start it again at the same ports; `wait_until_it_serves` waits for it."""
        self._launch("datanode", DATANODE)

    def wait_until_it_serves(self) -> None:
        """Wait until files can be read and written: both processes are there and know of each other."""

        def is_there() -> bool:
            for name, process in self._processes.items():
                if process.poll() is not None:
                    raise AssertionError(f"the {name} of HDFS ended:\n{self._log(name)}")
            return self._serves()

        wait_until(is_there, "HDFS", deadline_s=START_TIMEOUT_S)

    def pid_of(self, name: Literal["namenode", "datanode"]) -> int:
        """Return the process that may be frozen."""
        return self._processes[name].pid

    def stop(self) -> None:
        """Stop both processes, the one that needs the other first."""
        for name in ("datanode", "namenode"):
            self._end(name, signal.SIGTERM)

    def _serves(self) -> bool:
        with suppress(OSError, LookupError, ValueError, RuntimeError):
            # When the NameNode starts it is in safe mode, until it has heard of all blocks.
            namenode = _bean(self.http_port, "NameNode,name=FSNamesystemState")
            missing = _bean(self.http_port, "NameNode,name=FSNamesystem")["MissingBlocks"]
            # The NameNode takes 12 s to notice that a DataNode was killed: this is what the new one says.
            datanode = _bean(self.datanode_ports[1], "DataNode,name=DataNodeInfo")
            [connection] = json.loads(datanode["BPServiceActorInfo"])
            states = (connection["ActorState"], namenode["NumLiveDataNodes"], namenode["FSState"], missing)
            if states == ("RUNNING", 1, "Operational", 0):
                # All of that may be true for a moment in which the DataNode takes no block yet.
                with Client(self.url).create("/.serves", WriteOptions(overwrite=True)) as file:
                    file.write(b"yes")
                return True
        return False

    def _launch(self, name: str, main: str) -> None:
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                self._java(main),
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        guard.watch(process.pid)
        self._processes[name] = process

    def _end(self, name: str, number: signal.Signals) -> None:
        process = self._processes.pop(name, None)
        if process is None:
            return
        process.send_signal(number)
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        guard.release(process.pid)

    def _java(self, main: str, *arguments: str) -> list[str]:
        folders = [str(self.folder / "conf"), str(self.folder / "web")]
        return [find_java(), *_JVM, "-cp", os.pathsep.join([*folders, *find_jars()]), main, *arguments]

    def _log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()[-3000:]

    def _write_configuration(self) -> None:
        transfer, http, calls = self.datanode_ports
        settings = {
            "fs.defaultFS": self.url,
            "hadoop.tmp.dir": str(self.folder / "tmp"),
            "dfs.namenode.name.dir": str(self.folder / "namenode"),
            "dfs.namenode.http-address": f"{LOOPBACK}:{self.http_port}",
            "dfs.namenode.safemode.extension": "0",
            "dfs.datanode.data.dir": str(self.folder / "datanode"),
            "dfs.datanode.address": f"{LOOPBACK}:{transfer}",
            "dfs.datanode.http.address": f"{LOOPBACK}:{http}",
            "dfs.datanode.ipc.address": f"{LOOPBACK}:{calls}",
            # WebHDFS sends clients to the DataNode by this name.
            "dfs.datanode.hostname": LOOPBACK,
            "dfs.replication": "1",
            # So that a DataNode that was killed counts as dead after 12 s and not after 10 minutes.
            "dfs.heartbeat.interval": "1",
            "dfs.namenode.heartbeat.recheck-interval": "1000",
        }
        (self.folder / "conf").mkdir(parents=True)
        # The pages of HDFS's web interface, which are not in the package: without folders it does not start.
        for page in ("hdfs", "datanode", "static"):
            (self.folder / "web" / "webapps" / page).mkdir(parents=True)
        rows = "".join(f"<property>{''.join(_cells(*each))}</property>\n" for each in settings.items())
        for name in ("core-site.xml", "hdfs-site.xml"):
            (self.folder / "conf" / name).write_text(f"<configuration>\n{rows}</configuration>\n")
        (self.folder / "conf" / "log4j.properties").write_text(_LOG4J)


def _bean(http_port: int, which: str) -> Any:
    """Return what a NameNode or DataNode tells of itself."""
    url = f"http://{LOOPBACK}:{http_port}/jmx?qry=Hadoop:service={which}"
    with urllib.request.urlopen(url, timeout=5) as answer:
        return json.load(answer)["beans"][0]


def _cells(name: str, value: str) -> Iterator[str]:
    yield f"<name>{escape(name)}</name>"
    yield f"<value>{escape(value)}</value>"


def find_jars() -> list[str]:
    """Return what both processes are made of, in the order of the class path; ConfigError if not there."""
    if not (HADOOP / "installed.lock").exists():
        raise ConfigError(f"there is no HDFS in {HADOOP}: run scripts/setup.sh hdfs")
    jars = sorted((HADOOP / "jars").glob("*.jar"), key=lambda jar: (jar.name.startswith(_LAST_JAR), jar.name))
    return list(map(str, jars))
