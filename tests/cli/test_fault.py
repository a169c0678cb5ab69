from kensho.cli.commands.fault import KINDS
from kensho.runtime.hosts.frames import FAULT_KINDS


def test_every_fault_of_a_host_has_its_word_on_the_command_line() -> None:
    assert KINDS == FAULT_KINDS
