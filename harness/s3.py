"""A private S3 for tests: moto's server, a process that keeps objects in memory and checks signatures."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import boto3

from fluffle import guard
from fluffle_cli.rabbitmq_server import LOOPBACK, free_ports, is_free
from harness.federation import wait_until

REGION = "us-east-1"
START_TIMEOUT_S = 60.0
_EVERYTHING = {"Effect": "Allow", "Action": "*", "Resource": "*"}
# moto checks who asks once a user, a policy, a key and a bucket are there.
_BEFORE_CHECKS = 4


@dataclass(frozen=True, slots=True)
class S3Server:
    """A server with one bucket and one user who may do everything; `with` stops it, and nothing remains."""

    process: subprocess.Popen[bytes]
    port: int
    access_key: str
    secret_key: str
    bucket: str = "fluffle"

    @classmethod
    def start(cls, folder: Path) -> Self:
        """Start a server, whose log is in `folder`, and wait until its bucket is there: about 1 s."""
        with free_ports(1) as [port], (folder / "s3.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "moto.server", "-H", LOOPBACK, "-p", str(port)],
                env=os.environ | {"INITIAL_NO_AUTH_ACTION_COUNT": str(_BEFORE_CHECKS)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            guard.watch(process.pid)
            try:
                _wait_for(process, port, folder / "s3.log")
                server = cls(process, port, "nobody-yet", "nobody-yet").with_user("site", _EVERYTHING)
                server.client().create_bucket(Bucket=server.bucket)
            except BaseException:  # Ctrl-C too: without this the process would stay behind
                process.kill()
                guard.release(process.pid)
                raise
        return server

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """The bucket, as a URL for Fluffle."""
        return f"s3://{self.bucket}"

    @property
    def endpoint_url(self) -> str:
        """Where the server listens."""
        return f"http://{LOOPBACK}:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        """The variables with which the libraries of AWS find the server and may use it."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_ENDPOINT_URL": self.endpoint_url,
        }

    def with_user(self, name: str, *rights: Mapping[str, object]) -> Self:
        """Return the same server for a new user, who has these rights: statements of a policy."""
        users = self.client("iam")
        users.create_user(UserName=name)
        policy = json.dumps({"Version": "2012-10-17", "Statement": rights})
        users.put_user_policy(UserName=name, PolicyName="rights", PolicyDocument=policy)
        key = users.create_access_key(UserName=name)["AccessKey"]
        return replace(self, access_key=str(key["AccessKeyId"]), secret_key=str(key["SecretAccessKey"]))

    def client(self, service: str = "s3") -> Any:
        """Return Amazon's own client, to look at what others have stored."""
        return boto3.client(
            service,
            endpoint_url=self.endpoint_url,
            region_name=REGION,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
        )

    def stop(self) -> None:
        """End the process; a second time does nothing."""
        self.process.kill()
        self.process.wait()
        guard.release(self.process.pid)


def _wait_for(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    def serves() -> bool:
        if process.poll() is not None:
            raise AssertionError(f"the S3 server ended:\n{log.read_text()}")
        return not is_free(port)

    wait_until(serves, "the S3 server", deadline_s=START_TIMEOUT_S)
