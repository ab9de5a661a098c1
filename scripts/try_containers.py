"""`make test-containers`: build the images and run a federation in containers, as users without a name.

It needs a Docker engine with Compose. The last commit is copied to a temporary folder, so that passwords,
`.env` and containers of the working folder stay as they are. Each container gets another user id of group 0,
as on some platforms. With the argument `secure` it runs with secure aggregation and three helpers, of which
one is killed in the middle.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
PROJECT = "fluffle-test"
PARTS = (
    "initial-model",
    "aggregator",
    "standby",
    "evaluator",
    "worker-0",
    "worker-1",
    "worker-2",
    "worker-3",
)
ENVIRONMENT = {
    "COMPOSE_PROJECT_NAME": PROJECT,
    "FLUFFLE_TARGET": "accuracy>=0.9",
    "FLUFFLE_UI_PORT": "25672",
    "FLUFFLE_DASHBOARD_PORT": "28089",
}


# With secure aggregation all who have a key are the user who owns the keys.
SECURE_USER = 54321
SECURE = {
    "COMPOSE_FILE": "docker-compose.yml:docker-compose.secure.yml:docker-compose.override.yml",
    "COMPOSE_PROFILES": "secure",
    "FLUFFLE_SECURE_USER": f"{SECURE_USER}:0",
    "FLUFFLE_TARGET": "accuracy>=0.85",
}
KILLED = "helper-2"


def run(*command: str, folder: Path) -> str:
    """Run a command and return its output; end the program if it fails."""
    done = subprocess.run(
        command,
        cwd=folder,
        env=os.environ | ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout[-3000:]}")
    return done.stdout


def faults_in_log(part: str, log: str) -> list[str]:
    """Return what is wrong in a part's log: lines that are no log line in JSON, and warnings."""
    faults = []
    for line in log.splitlines():
        try:
            level = json.loads(line)["level"]
        except (ValueError, TypeError, KeyError):
            faults.append(f"{part} has a line that is no log line in JSON: {line}")
            continue
        if level not in {"debug", "info"}:
            faults.append(f"{part} should log no warning, and logs: {line}")
    return faults


def make_keys(folder: Path) -> None:
    """Make all keys of secure aggregation, as docker-compose.secure.yml says."""
    keys = folder / "secure"
    keys.mkdir()
    os.chown(keys, SECURE_USER, 0)
    run("docker", "compose", "run", "--rm", "keys", folder=folder)


def kill_a_helper(folder: Path) -> None:
    """Kill one of the helpers once some sums are opened."""
    container = run("docker", "compose", "ps", "--quiet", KILLED, folder=folder).strip()
    deadline = time.monotonic() + 300
    while run("docker", "logs", container, folder=folder).count("opened a sum") < 3:
        if time.monotonic() > deadline:
            sys.exit(f"{KILLED} has opened no sums")
        time.sleep(0.5)
    run("docker", "kill", container, folder=folder)


def main() -> int:
    """Build, run to the target, and check exit codes and logs; return 0 if all is well."""
    is_secure = sys.argv[1:] == ["secure"]
    if is_secure:
        ENVIRONMENT.update(SECURE)
    with tempfile.TemporaryDirectory(prefix="fluffle-containers-") as name:
        folder = Path(name)
        run("sh", "-c", f"git -C '{ROOT}' archive HEAD | tar -x -C '{folder}'", folder=folder)
        run("make", "secrets", folder=folder)
        own = [part for part in PARTS if not (is_secure and part.startswith("worker"))]
        users = {part: {"user": f"{54321 + number}:0"} for number, part in enumerate(own)}
        (folder / "docker-compose.override.yml").write_text(json.dumps({"services": users}))
        try:
            sys.stdout.write("--> building the images and running a federation: 5 to 10 minutes\n")
            built = run("docker", "compose", "--progress", "plain", "build", folder=folder)
            if is_secure:
                make_keys(folder)
            run("docker", "compose", "up", "--detach", folder=folder)
            if is_secure:
                kill_a_helper(folder)
            faults = [] if built.count("exporting to image\n") == 2 else ["an image was built more than once"]
            for part in PARTS:
                container = run("docker", "compose", "ps", "--all", "--quiet", part, folder=folder).strip()
                code = run("docker", "wait", container, folder=folder).strip()
                faults += [f"{part} ended with {code}"] * (code != "0")
                # Not by Compose, some versions of which write codes for a terminal between the lines.
                log = run("docker", "logs", container, folder=folder)
                # Whoever waits for a helper that was killed says so.
                faults += [] if is_secure else faults_in_log(part, log)
                if is_secure and part == "aggregator" and "sum opened" not in log:
                    standby = run("docker", "compose", "logs", "standby", folder=folder)
                    faults += ["no sum was opened"] * ("sum opened" not in standby)
        finally:
            run("docker", "compose", "down", "--volumes", "--timeout", "5", folder=folder)
    said = "\n".join(faults) or f"{len(PARTS)} parts ran as users without a name and ended with 0"
    sys.stdout.write(f"{said}\n")
    return len(faults) > 0


if __name__ == "__main__":
    sys.exit(main())
