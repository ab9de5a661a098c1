"""`fluffle keys rotate` that is killed at any moment: the old keys are whole, or the new ones."""

import shutil
import subprocess
import sys
from pathlib import Path

from helping import HELPERS, WORKERS

from fluffle.secure.key_files import OperatorKey, WorkerKey, WorkerPublicKey, read_private, write_public
from fluffle.secure.registry import read_registry
from fluffle_cli.making_keys import make_helpers, make_operator, rotate_keys, sign
from fluffle_helper.own_files import HelperFiles

# Rotates the keys in copies of a folder, and is killed in each one call later: before it, or after it.
KILLED = """\
import itertools, os, shutil, signal, sys
from pathlib import Path
from fluffle_cli.making_keys import rotate_keys

source, copies = map(Path, sys.argv[1:])
left = 0

def killing(call):
    def killed(*arguments, **named):
        count()
        done = call(*arguments, **named)
        count()
        return done
    return killed

def count():
    global left
    left -= 1
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)

for number in itertools.count(1):
    copy = copies / str(number)
    shutil.copytree(source, copy)
    child = os.fork()
    if not child:
        for name in ("open", "fsync", "mkdir", "rename", "replace", "unlink"):
            setattr(os, name, killing(getattr(os, name)))
        left = number
        rotate_keys(copy)
        os._exit(0)
    if not os.waitpid(child, 0)[1]:
        break
"""


def epoch_of(folder: Path) -> int:
    """Return the epoch of the registry in an operator's folder, for which each helper's files are whole."""
    operator = read_private(folder / "operator.key", OperatorKey).private.public_key()
    epoch = read_registry((folder / "registry.json").read_text(), operator).epoch
    for helper in HELPERS:
        own = HelperFiles(
            key=folder / f"epoch-{epoch}" / f"{helper}.key",
            registry=folder / "registry.json",
            operator=folder / "operator.pub",
            federation="digits",
        ).read()
        assert (own.key.epoch, own.ledger.epoch) == (epoch, epoch)
        assert own.registry.workers.keys() == set(WORKERS)
    return epoch


def test_a_rotation_that_is_killed_at_any_write_leaves_the_old_keys_or_the_new_ones(tmp_path: Path) -> None:
    source, copies = tmp_path / "keys", tmp_path / "copies"
    make_operator(source)
    make_helpers(source, HELPERS, "digits", 1)
    publics = [tmp_path / f"{name}.pub" for name in WORKERS]
    for path in publics:
        write_public(path, WorkerPublicKey.of(WorkerKey.new("digits", path.stem)))
    sign(source, publics, [])

    subprocess.run([sys.executable, "-c", KILLED, str(source), str(copies)], check=True, timeout=120)

    folders = sorted(copies.iterdir(), key=lambda each: int(each.name))
    epochs = [epoch_of(folder) for folder in folders]
    assert len(folders) > 50
    assert epochs == sorted(epochs)
    assert {*epochs} == {1, 2}
    for folder in folders:
        # What was begun does not matter: the registry can be signed again, and the keys can be rotated.
        shutil.copytree(folder, again := folder.with_name(f"{folder.name}-signed"))
        sign(again, [], [])
        epoch_of(again)
        rotate_keys(folder)
        newest = epoch_of(folder)
        assert {path.parent.name for path in folder.rglob("helper-*.key")} == {f"epoch-{newest}"}


def test_an_operator_whose_key_was_made_and_whose_public_key_was_not_goes_on_with_it(tmp_path: Path) -> None:
    make_operator(tmp_path)
    public = (tmp_path / "operator.pub").read_text()
    (tmp_path / "operator.pub").unlink()

    make_operator(tmp_path)

    assert (tmp_path / "operator.pub").read_text() == public


def test_the_private_keys_of_helpers_that_are_replaced_are_deleted_once_the_registry_is_signed(
    tmp_path: Path,
) -> None:
    make_operator(tmp_path)
    make_helpers(tmp_path, HELPERS, "digits", 1)
    for name in WORKERS:
        key = WorkerKey.new("digits", name)
        write_public(tmp_path / f"{name}.pub", WorkerPublicKey.of(key))
    sign(tmp_path, [tmp_path / f"{name}.pub" for name in WORKERS], [])
    left = tmp_path / "epoch-1" / f"{HELPERS[0]}.key"
    assert left.exists()

    make_helpers(tmp_path, ("helper-4", "helper-5", "helper-6"), "digits", 1)
    said = sign(tmp_path, [], [])

    assert not left.exists()
    assert f"deleted {left}" in said
