"""`specx completion`: what a shell asks when Tab is pressed, and what it is told.

The shell runs `specx` with the words of the line, the one that is being typed last, and `_SPECX_COMPLETE` in
its environment. Only the command that the line names is imported for that.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any

import typer

__all__ = ["ASKED", "answer", "candidates", "completion", "register"]

ASKED = "_SPECX_COMPLETE"
"""The environment variable that says for which shell the words are completed."""

BASH = """\
_specx_completion() {
    local IFS=$'\\n'
    COMPREPLY=( $(_SPECX_COMPLETE=bash specx "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null) )
}
complete -o default -o bashdefault -F _specx_completion specx
"""

ZSH = """\
#compdef specx
_specx() {
    local -a found
    found=("${(@f)$(_SPECX_COMPLETE=zsh specx "${(@)words[2,CURRENT]}" 2>/dev/null)}")
    if [[ -n "$found" ]]; then _describe specx found; else _files; fi
}
compdef _specx specx
"""

FISH = """\
function __specx_completion
    set -l before (commandline -opc)
    set -l current (commandline -ct)
    env _SPECX_COMPLETE=fish specx $before[2..-1] "$current" 2>/dev/null
end
complete -c specx -a '(__specx_completion)'
"""

SCRIPTS = {"bash": BASH, "zsh": ZSH, "fish": FISH}


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(completion)


def completion(
    shell: Annotated[
        str,
        typer.Argument(
            metavar="|".join(SCRIPTS),
            help="The shell.",
            show_default=False,
        ),
    ],
) -> None:
    """Write the script that makes a shell complete commands, options, their values and models.

    bash: put `source <(specx completion bash)` into ~/.bashrc. zsh: put `source <(specx completion zsh)` into
    ~/.zshrc, after compinit. fish: `specx completion fish > ~/.config/fish/completions/specx.fish`.
    """
    from specx.cli.options.read import one_of
    from specx.cli.terminal.console import write

    write(SCRIPTS[one_of("the shell", shell, tuple(SCRIPTS))])


def answer(command: Any, words: Sequence[str]) -> str:
    """What the shell is told: a candidate a line, in its own form.

    Args:
        command: that of `specx`.
        words: of the line after `specx`, the one that is being typed last.
    """
    shell = os.environ[ASKED]
    forms: dict[str, Callable[[str, str], str]] = {
        "zsh": lambda value, about: f"{value.replace(':', chr(92) + ':')}:{about}" if about else value,
        "fish": lambda value, about: f"{value}\t{about}",
    }
    form = forms.get(shell, _bare)
    return "".join(form(value, about) + "\n" for value, about in candidates(command, words))


def _bare(value: str, _about: str) -> str:
    return value


def candidates(command: Any, words: Sequence[str]) -> Iterator[tuple[str, str]]:
    """What the last of the words may become, each with a few words about it."""
    *before, incomplete = words or [""]
    # bash takes --option=value for three words.
    before = [word for word in before if word != "="]
    yield from _found(command, before, "" if incomplete == "=" else incomplete)


def _found(command: Any, before: list[str], incomplete: str) -> Iterator[tuple[str, str]]:
    from typer._click.shell_completion import _resolve_context, _resolve_incomplete

    from specx.cli.options.completing import values_of

    context = _resolve_context(command, {}, "specx", before)
    asked, incomplete = _resolve_incomplete(context, before, incomplete)
    if hasattr(asked, "opts"):  # a parameter
        yield from ((value, "") for value in values_of(asked, context.command_path, incomplete))
        return
    for item in asked.shell_complete(context, incomplete):
        if item.type == "plain":
            yield str(item.value), (item.help or "").split("\n", maxsplit=1)[0]
