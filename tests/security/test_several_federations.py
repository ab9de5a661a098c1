"""Users of several federations on a real node: how they are made, changed, listed and removed."""

from pathlib import Path

import pytest
from fluffle_command import Fluffle, gets_in, listed
from rabbitmqctl import rabbitmqctl

from fluffle.management import Management
from fluffle.rights import Rights, rights_of
from fluffle_cli.node import BrokerNode
from fluffle_cli.users import hash_of


def test_a_user_of_several_federations_is_listed_in_each_of_them_and_in_no_other(
    fluffle: Fluffle, management: Management
) -> None:
    made = fluffle("user", "add", "site-w", "--role", "worker", "--federation", "wide, gym-*")

    account = management.account("site-w")
    assert made.exit_code == 0, made.output
    assert "worker of the federations wide,gym-*" in made.output
    assert account is not None
    assert account.rights["/"] == rights_of("worker", "wide,gym-*", "site-w")
    for federation in ("wide", "gym-1", "gym-a_b"):
        assert listed(fluffle, federation)["site-w"][:2] == ["worker", "wide,gym-*"]
    for federation in ("wide-2", "gym", "digits"):
        assert "site-w" not in listed(fluffle, federation)


def test_a_second_experiment_needs_no_new_users(
    fluffle: Fluffle, management: Management, tmp_path: Path
) -> None:
    fluffle("user", "add", "site-x", "--role", "worker", "--federation", "exp-*")
    users = "--users", "site-x=worker", "--password-folder", str(tmp_path)

    again = fluffle("user", "add", "site-x", "--role", "worker", "--federation", "exp-2")
    setup = fluffle("broker", "setup", "--federation", "exp-3", *users)

    account = management.account("site-x")
    assert (again.exit_code, setup.exit_code) == (0, 0), again.output + setup.output
    assert "nothing was changed" in again.output
    assert "worker site-x: exists, unchanged" in setup.output
    assert account is not None
    assert account.rights["/"] == rights_of("worker", "exp-*", "site-x")


def test_a_user_gets_other_federations_and_keeps_its_password_and_its_role(
    fluffle: Fluffle, managed_node: BrokerNode, management: Management, tmp_path: Path
) -> None:
    file = tmp_path / "password"
    fluffle("user", "add", "site-y", "--role", "worker", "--password-file", str(file))

    changed = fluffle("user", "change", "site-y", "--federation", "digits,faces")

    account = management.account("site-y")
    assert changed.exit_code == 0, changed.output
    assert (
        "is now a worker of the federations digits,faces; before, it belonged to the federation digits"
        in changed.output
    )
    assert account is not None
    assert account.rights["/"] == rights_of("worker", "digits,faces", "site-y")
    assert gets_in(managed_node, "site-y", file.read_text().strip())


def test_an_aggregator_that_is_given_other_federations_still_may_look_at_policies(
    fluffle: Fluffle, managed_node: BrokerNode, management: Management
) -> None:
    fluffle("user", "add", "lead-y", "--role", "aggregator")
    rabbitmqctl(managed_node, "set_user_tags", "lead-y", "management")

    changed = fluffle("user", "change", "lead-y", "--federation", "gym-*")

    account = management.account("lead-y")
    assert changed.exit_code == 0, changed.output
    assert account is not None
    assert account.tags == {"management"}
    assert listed(fluffle, "gym-9")["lead-y"][:2] == ["aggregator", "gym-*"]


def test_only_a_user_that_has_a_role_in_federations_can_be_given_others(
    fluffle: Fluffle, managed_node: BrokerNode, management: Management
) -> None:
    management.put_user("site-z", Rights(read=r"^digits\.head$"), hash_of("x"))

    nobody, by_hand, operator = (
        fluffle("user", "change", name, "--federation", "faces")
        for name in ("not-there", "site-z", managed_node.user)
    )

    assert [each.exit_code for each in (nobody, by_hand, operator)] == [2, 2, 2]
    assert "there is no user 'not-there'" in nobody.output
    assert "has rights of its own and no role" in by_hand.output
    assert "is an operator" in operator.output


def test_a_user_of_several_federations_is_removed_only_from_all_of_them(
    fluffle: Fluffle, management: Management
) -> None:
    fluffle("user", "add", "site-q", "--role", "worker", "--federation", "one,two")

    refused = fluffle("user", "remove", "site-q", "--federation", "one")
    assert management.account("site-q") is not None
    removed = fluffle("user", "remove", "site-q", "--federation", "two,one")

    assert (refused.exit_code, removed.exit_code) == (2, 0)
    assert "it is a worker of one,two" in refused.output
    assert management.account("site-q") is None


@pytest.mark.parametrize("federation", ["Gym-*", "gym-*,", "a b", "gym.*", "-*", "a" * 49])
def test_impossible_federation_names_are_refused_by_name(fluffle: Fluffle, federation: str) -> None:
    refused = fluffle("user", "add", "site-u", "--role", "worker", "--federation", federation)

    assert refused.exit_code == 2
    assert "--federation must be federations such as digits,gym-*" in refused.output
