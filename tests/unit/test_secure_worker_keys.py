"""The keys of a worker of secure aggregation: what does not fit is refused, and epochs are waited for."""

import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from federation import wait_until
from secure_sites import PLAN, Site, a_site, registered
from secure_working import SecretTask, expected_numbers, live, version
from working import (
    a_federation,
    later,
    publish_versions,
    sent,
    sent_updates,
)

from fluffle.errors import ConfigError
from fluffle.settings import load_arguments
from fluffle_worker import masking, running
from fluffle_worker.settings import WorkerSettings


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return a_site(tmp_path_factory.mktemp("keys"))


def wrong_federation(site: Site) -> None:
    site.sign(site.registry.model_copy(update={"federation": "hospital"}))


def not_registered(site: Site) -> None:
    site.sign(site.registry.model_copy(update={"workers": {}}))


def another_key(site: Site) -> None:
    site.sign(site.registry.model_copy(update={"workers": {"w1": "ab" * 32}}))


def revoked(site: Site) -> None:
    site.sign(site.registry.model_copy(update={"workers": {}, "revoked": ("w1",)}))


def another_operator(site: Site) -> None:
    site.sign(site.registry, type(site.operator).new())


def changed_after_signing(site: Site) -> None:
    file = site.files["registry"]
    file.write_text(file.read_text().replace('"epoch": 1', '"epoch": 2'))


def bad_group_key(site: Site) -> None:
    site.sign(site.registry.model_copy(update={"group_keys": ("0" * 64, *site.registry.group_keys[1:])}))


def no_registry(site: Site) -> None:
    site.files["registry"].unlink()


def half_a_registry(site: Site) -> None:
    file = site.files["registry"]
    file.write_bytes(file.read_bytes()[:100])


def no_text(site: Site) -> None:
    site.files["registry"].write_bytes(b"\xff\xfe")


def no_operator(site: Site) -> None:
    site.files["operator"].write_text("no key")


def readable_by_all(site: Site) -> None:
    site.files["key"].chmod(0o644)


def registry_for_a_key(site: Site) -> None:
    shutil.copy(site.files["registry"], site.files["key"])
    site.files["key"].chmod(0o600)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (wrong_federation, "is the registry of 'hospital'.*ask the operator"),
        (not_registered, "fluffle keys registry"),
        (another_key, "another public key for 'w1'.*--secure-key"),
        (revoked, "'w1' is revoked in .*ask the operator"),
        (another_operator, "not signed with this operator's key"),
        (changed_after_signing, "not signed with this operator's key, or was changed"),
        (bad_group_key, "no mask can be made"),
        (no_registry, "cannot read the registry .*No such file"),
        (half_a_registry, "registry.json: this is no registry"),
        (no_text, "it is no text"),
        (no_operator, "copy operator.pub again"),
        (readable_by_all, "chmod 600"),
        (registry_for_a_key, "is no worker key"),
    ],
)
def test_keys_that_do_not_fit_together_are_refused_with_what_to_do(
    spoil: Callable[[Site], None], says: str, site: Site
) -> None:
    spoil(site)

    with pytest.raises(ConfigError, match=says):
        site.keys()


@pytest.mark.parametrize("given", [{"worker": "w2"}, {"federation": "hospital"}])
def test_another_workers_key_is_refused(given: dict[str, str], site: Site) -> None:
    with pytest.raises(ConfigError, match=r"'w1' of 'digits'.*this worker's own key"):
        site.keys(**given)


def test_all_three_settings_are_given_or_none(site: Site) -> None:
    def files_of(**given: Path) -> object:
        return load_arguments(WorkerSettings, {"task": "digits", **given}).secure_files

    key = site.files["key"]
    assert files_of() is None
    assert files_of(secure_key=key, secure_registry=key, secure_operator=key) == (key, key, key)
    with pytest.raises(ConfigError, match="secure_key is set, but not secure_registry and secure_operator"):
        files_of(secure_key=key)
    with pytest.raises(ConfigError, match="secure_key and secure_operator is set, but not secure_registry"):
        files_of(secure_key=key, secure_operator=key)


def test_a_worker_without_secure_aggregation_does_not_load_the_library_of_ciphers() -> None:
    program = (
        "import sys, fluffle_worker.running, fluffle_worker.__main__; "
        "sys.exit(any(name.split('.')[0] == 'cryptography' for name in sys.modules))"
    )

    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_a_missing_library_is_named(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fluffle_worker.secure_keys", None)
    given: dict[str, Any] = {f"secure_{name}": path for name, path in site.files.items()}

    with pytest.raises(ConfigError, match="pip install cryptography"):
        running.run_worker(SecretTask(), name="w1", sites=1, **given)


@pytest.fixture
def quick_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(masking, "LOOK_EVERY_S", 0.01)
    monkeypatch.setattr(masking, "LOOK_FOR_S", 0.1)


def when_told(caplog: pytest.LogCaptureFixture, text: str, action: Callable[[], None]) -> None:
    """Do something once the worker has logged a text."""

    def wait_and_act() -> None:
        wait_until(lambda: any(text in message for message in caplog.messages), text)
        action()

    later(wait_and_act)


def next_epoch(site: Site, epoch: int = 2) -> Site:
    """Let the operator rotate the helpers' keys; the worker's key stays."""
    registry, helpers = registered([], epoch=epoch)
    registry = registry.model_copy(update={"workers": site.registry.workers})
    return replace(site, registry=registry, helpers=helpers)


@pytest.mark.usefixtures("quick_looks")
def test_a_worker_waits_for_the_registry_of_the_plans_epoch_and_then_uses_its_keys(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    rotated = next_epoch(site)
    plan = replace(PLAN, epoch=2)
    server, task, keys = a_federation(version(secure=plan)), SecretTask(), site.keys()
    when_told(caplog, "the registry is older", lambda: rotated.sign(rotated.registry))

    live(server, task, keys)

    [update] = sent_updates(server)
    assert update.epoch == 2
    assert rotated.numbers(update).tolist() == expected_numbers(task, 0, update, plan).tolist()
    assert "the registry is older than the federation's plan" in caplog.text


def test_a_worker_whose_registry_has_other_keys_of_the_same_epoch_sends_nothing(site: Site) -> None:
    server = a_federation(version(secure=PLAN.of_keys("ab" * 32)))

    with pytest.raises(ConfigError, match=r"other keys of the helpers for epoch 1.*ask the operator"):
        live(server, SecretTask(), site.keys())

    assert sent_updates(server) == []


def test_a_worker_with_the_keys_of_the_plan_takes_part(site: Site) -> None:
    server = a_federation(version(secure=PLAN.of_keys(site.registry.keys_digest)))

    live(server, SecretTask(), site.keys())

    assert len(sent_updates(server)) == 1


@pytest.mark.usefixtures("quick_looks")
def test_keys_that_are_rotated_while_a_worker_runs_are_used_from_the_next_round_on(site: Site) -> None:
    rotated = next_epoch(site)
    server = a_federation(version())

    def rotate() -> None:
        rotated.sign(rotated.registry)
        publish_versions(server, version(1, replace(PLAN, epoch=2)))

    task = SecretTask()
    task.meanwhile = lambda: rotate() if len(task.started_from) == 1 else None

    live(server, task, site.keys(), updates=2)

    assert [each.epoch for each in sent_updates(server)] == [1, 2]


@pytest.mark.usefixtures("quick_looks")
def test_a_registry_that_is_half_copied_is_waited_for_and_named(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    rotated = next_epoch(site)
    server, keys = a_federation(version(secure=replace(PLAN, epoch=2))), site.keys()
    half_a_registry(site)
    when_told(caplog, "this is no registry", lambda: rotated.sign(rotated.registry))

    live(server, SecretTask(), keys)

    assert "this is no registry" in caplog.text
    assert [each.epoch for each in sent_updates(server)] == [2]


@pytest.mark.usefixtures("quick_looks")
def test_a_worker_that_is_revoked_in_the_next_epoch_ends(site: Site) -> None:
    server, keys, task = a_federation(version(secure=replace(PLAN, epoch=2))), site.keys(), SecretTask()
    revoked(next_epoch(site))

    with pytest.raises(ConfigError, match=r"'w1' is revoked in .*epoch 2"):
        live(server, task, keys)

    assert task.started_from == []


@pytest.mark.usefixtures("quick_looks")
def test_a_registry_that_is_newer_than_the_plan_waits_for_a_version_of_its_epoch(
    tmp_path_factory: pytest.TempPathFactory, caplog: pytest.LogCaptureFixture
) -> None:
    site = a_site(tmp_path_factory.mktemp("newer"), epoch=2)
    server, task = a_federation(version(0)), SecretTask()
    server.longest_wait_s = 0.05
    newer = version(1, replace(PLAN, epoch=2))
    when_told(caplog, "the registry is newer", lambda: publish_versions(server, newer))

    live(server, task, site.keys())

    assert [(each.base_version, each.epoch) for each in sent_updates(server)] == [(1, 2)]
    assert "the registry is newer than the federation's plan" in caplog.text


@pytest.mark.parametrize("epoch", [1, 3])
@pytest.mark.usefixtures("quick_looks")
def test_a_worker_that_waits_for_an_epoch_stops_when_asked_and_does_not_fill_the_log(
    epoch: int, tmp_path_factory: pytest.TempPathFactory, caplog: pytest.LogCaptureFixture
) -> None:
    site, stop = a_site(tmp_path_factory.mktemp("other"), epoch=epoch), threading.Event()
    server, task = a_federation(version(secure=replace(PLAN, epoch=2))), SecretTask()
    server.longest_wait_s = 0.05
    threading.Timer(0.5, stop.set).start()

    live(server, task, site.keys(), stop=stop)

    assert (sent(server), task.started_from) == ([], [])
    assert 1 <= caplog.text.count("than the federation's plan") <= 4


@pytest.mark.usefixtures("quick_looks")
def test_the_end_of_the_federation_is_noticed_while_a_registry_is_waited_for(site: Site) -> None:
    server = a_federation(version(secure=replace(PLAN, epoch=2)))
    later(lambda: publish_versions(server, version(1, finished="enough")))

    assert live(server, SecretTask(), site.keys()).ended_by == "enough"
