"""What stands on the command line, before any command sees it, and what is said if no command can take it."""

from __future__ import annotations

from collections.abc import Sequence

from typer.exceptions import TyperException


def checked(arguments: Sequence[str]) -> list[str]:
    """The arguments with ``~`` replaced where a shell leaves it alone, as in ``--store=~/store``.

    Raises ``ConfigError`` if one is empty, as an unset variable makes it, or is no UTF-8, in which tables are written.
    """
    from cascade.storage.errors import ConfigError
    from cascade.storage.paths import expanded, require_utf8

    found = []
    for argument in arguments:
        option, equals, value = argument.partition("=") if argument.startswith("--") else ("", "", argument)
        if not value and (equals or not option):
            raise ConfigError(f"{option or 'an argument'} is empty; give it a value, or leave it out")
        require_utf8(argument)
        found.append(f"{option}{equals}{expanded(value)}" if value.startswith("~") else argument)
    return found


def usage_fault(error: TyperException) -> str:
    """One line for a command line that does not fit its command; empty if the help was shown in its place."""
    from cascade.storage.errors import nearest

    message, context = error.format_message().rstrip(".").replace("Value error, ", ""), getattr(error, "ctx", None)
    if not message or context is None:
        return message
    options = {"--help"} | {
        name for parameter in context.command.params for name in parameter.opts if name.startswith("-")
    }
    given = getattr(error, "option_name", None)
    if given is not None and given not in options:
        return f"{context.command_path}: no option '{given}'; {nearest(given, options)}"
    return f"{message}{'' if message.endswith('?') else ';'} see `{context.command_path} --help`"
