"""prepare_machine: what the command line sets before torch is imported."""

import os

import pytest

from gap.cli import machine
from gap.core.memory import keep_freed_memory


@pytest.fixture
def memory_calls(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Records the calls that keep freed memory, in place of making them."""
    calls: list[bool] = []
    monkeypatch.setattr(machine, "keep_freed_memory", lambda: calls.append(True))
    monkeypatch.delenv(machine.POLICY, raising=False)
    return calls


@pytest.mark.parametrize(("share", "policy"), [(0.9, "PASSIVE"), (0.1, None)])
def test_prepare_machine_on_a_busy_machine_sets_the_passive_policy(
    memory_calls: list[bool],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    share: float,
    policy: str | None,
) -> None:
    """Catches: a policy that is set on an idle machine, or set without a message."""
    monkeypatch.setattr(machine, "busy_share", lambda: share)
    monkeypatch.setenv(machine.POLICY, "")  # so that monkeypatch removes what is set, after the test
    monkeypatch.delenv(machine.POLICY)
    machine.prepare_machine(["train", "--classifier", "mnist-cnn"])
    assert os.environ.get(machine.POLICY) == policy and memory_calls == [True]
    assert ("90% of the processors" in capsys.readouterr().err) == (policy is not None)


def test_prepare_machine_policy_of_the_user_is_kept(memory_calls: list[bool], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "busy_share", lambda: 1.0)
    monkeypatch.setenv(machine.POLICY, "ACTIVE")
    machine.prepare_machine(["train"])
    assert os.environ[machine.POLICY] == "ACTIVE"


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["attacks"], ["--version"]])
def test_prepare_machine_for_help_and_lists_changes_nothing(
    memory_calls: list[bool], monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    monkeypatch.setattr(machine, "busy_share", lambda: 1.0)
    machine.prepare_machine(arguments)
    assert machine.POLICY not in os.environ and not memory_calls


def test_busy_share_is_between_0_and_1() -> None:
    assert 0 <= machine.busy_share(0.01) <= 1


def test_keep_freed_memory_is_accepted_by_glibc() -> None:
    """Catches: a value that mallopt refuses."""
    import platform

    assert keep_freed_memory() == (platform.libc_ver()[0] == "glibc")
