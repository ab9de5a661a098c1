"""Ends the processes that this process has started when this process ends, even if it is killed by SIGKILL.

Each of them has a guard: a shell that reads a pipe whose other end only this process holds. When this process
ends, the kernel closes that end, and the guard kills the process and its group. Their number cannot mean
another process meanwhile: a child keeps it until this process waits for it or ends.
"""

import atexit
import subprocess

# epmd, which belongs to Erlang, refuses while a node is registered, as a killed one is for a moment more.
_STOP_PORT_MAPPER = 'for try in 1 2 3 4 5 6 7 8 9 10; do epmd -port "$1" -kill && break; sleep 0.1; done'
_GUARD = f"""
trap '' HUP INT TERM
read -r released && exit
kill -s KILL -- "-$2"
[ "$1" = 0 ] || {_STOP_PORT_MAPPER}
"""
_guards: dict[int, subprocess.Popen[bytes]] = {}


def watch(pid: int, *, epmd_port: int = 0) -> None:
    """Kill a child, which must lead a process group, with its group when this process ends.

    `epmd_port` is the port of a RabbitMQ node's port mapper, which is ended too.
    """
    _guards[pid] = subprocess.Popen(
        ["/bin/sh", "-c", _GUARD, "guard", str(epmd_port), str(pid)],
        cwd="/",
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def release(pid: int) -> None:
    """Stop watching a child: it has ended, or may outlive this process."""
    if guard := _guards.pop(pid, None):
        guard.communicate(b"released\n")


def stop_port_mapper(port: int) -> None:
    """End a RabbitMQ node's port mapper, unless another node still uses it after a second."""
    command = ["/bin/sh", "-c", _STOP_PORT_MAPPER, "sh", str(port)]
    subprocess.run(command, capture_output=True, check=False)


@atexit.register
def _end_what_is_watched() -> None:
    for guard in _guards.values():
        guard.communicate()
