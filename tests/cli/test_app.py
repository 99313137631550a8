from __future__ import annotations

import errno
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from specx.backends.errors import SpecxError
from specx.cli.commands import TABLE, every_command
from specx.cli.options import foreign
from specx.cli.terminal import console
from specx.cli.terminal.tables import show_table

PATIENCE = 240  # seconds that a process may take on a busy machine
HEAVY = ("numpy", "llama_cpp", "jinja2", "prompt_toolkit", "rich", "huggingface_hub", "gguf", "pydantic")


def test_help_and_version(specx):
    alone = specx()
    assert alone.code == 0 and alone.out == specx("--help").out == specx("-h").out
    for command in ("chat", "complete", "verify", "show", "pull", "cache"):
        assert re.search(rf"^  {command} ", alone.out, re.MULTILINE)
    assert re.fullmatch(r"specx \d+\.\d+\.\d+\n", specx("--version").out)


def test_commands_are_listed_in_the_words_of_their_own_help():
    listed = {name: entry.help for name, entry in TABLE.items()}
    assert listed == {name: command.help.splitlines()[0] for name, command in every_command().items()}


def test_only_the_command_that_runs_is_imported():
    code = (
        "import sys; from specx.cli.app import run; run(['cache', '--help']); "
        "print(sorted(n for n in sys.modules if n in {'specx.cli.' + e.module for e in "
        "sys.modules['specx.cli.commands'].TABLE.values()}), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "['specx.cli.cache']\n"


def test_a_group_of_commands_alone_prints_its_help(specx):
    outcome = specx("cache")
    assert outcome.code == 0 and outcome.out == specx("cache", "--help").out


@pytest.mark.parametrize("command", ["chat", "complete"])
def test_help_of_a_command_groups_its_options(specx, command):
    out = specx(command, "--help").out
    for heading in ("Arguments:", "Model:", "Drafting:", "Prompt:", "Sampling:", "Generation:"):
        assert f"\n{heading}\n" in out
    assert "--model-draft" in out and "--spec-draft-n-max" not in out  # hidden, but taken
    assert re.search(r"-c, --ctx-size N +Context in tokens", out)


def test_help_speaks_of_no_types_of_python(specx):
    inner = [(name, each) for name in ("cache", "drafter") for each in every_command()[name].commands]
    for path in [*((name,) for name in TABLE), *inner]:
        out = specx(*path, "--help").out
        assert not re.search(r"<(str|int|float|bool|list|path)\b|\[\[", out, re.IGNORECASE), path


@pytest.mark.parametrize(
    ("path", "usage"),
    [
        (("show",), "[MODEL]"),
        (("pull",), "MODEL"),
        (("cache", "add"), "FILE..."),
        (("drafter", "inspect"), "TARGET DRAFT"),
        (("completion",), "{bash|zsh|fish}"),
    ],
)
def test_usage_has_brackets_around_what_may_be_left_out(specx, path, usage):
    assert specx(*path, "--help").out.startswith(f"Usage: specx {' '.join(path)} [OPTIONS] {usage}\n")


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from specx.cli.app import run; run(['--help']); "
        f"print(sorted(set({HEAVY}) & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "[]\n"


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        (("chta",), "no such command 'chta'. Did you mean 'chat'?", "see `specx --help`"),
        (("complete", "--tmep", "1"), "no such option: --tmep", "did you mean --temp"),
        (("complete", "--temp", "hot"), "--temp is 'hot'", "give a number; see `specx complete --help`"),
        (("complete", "-n=2"), "-n/--n-predict is '=2'", "give a whole number; see"),
        (("show", "-c", "-1"), "-c/--ctx-size is -1", "give a number of at least 0; see"),
        (("show", "x", "-ctk", "f8"), "-ctk/--cache-type-k is 'f8'", "allowed are f32, f16"),
        (("batch", "x", "-k", "129"), "-k/--samples is 129", "give a number of at most 128; see"),
        (
            ("probe", "--staircase", "--depth", "1", "--depth", "x"),
            "--depth is 1, 'x'",
            "give a whole number",
        ),
        (("complete", "-p", "x", "--temp", "inf"), "--temp is inf", "give a number from 0 to 3.4"),
        (("--profile", "x", "chat"), "no such option: --profile", "it comes after the command"),
        (("--nonsense", "chat"), "no such option: --nonsense", "see `specx --help`"),
        (("complete", "--temp"), "option '--temp' requires an argument", "give it one: --temp X; see `specx"),
        (("complete", "-fa"), "option '-fa' requires an argument", "give it one: -fa on|off|auto; see"),
        (("drafter", "train", "x", "--time"), "option '--time' requires", "give it one: --time TIME; see"),
        (("complete", "a", "b"), "got unexpected extra argument", "a prompt goes after -p"),
        (("show", "a", "b"), "got unexpected extra argument", "see `specx show --help`"),
    ],
)
def test_wrong_usage_looks_like_every_other_error(specx, arguments, message, hint):
    outcome = specx(*arguments)
    assert outcome.code == 2 and outcome.out == ""
    error, told = outcome.err.splitlines()
    assert error.startswith(f"error: {message}")
    assert told.startswith(f"hint: {hint}")


@pytest.mark.parametrize(
    ("arguments", "option", "hint"),
    [
        (("complete", "--jinja"), "--jinja", "leave it out: the model's own chat template is always used"),
        (("complete", "-st"), "-st", "leave it out: `specx complete` answers once"),  # not the seed t
        (("chat", "-no-cnv"), "-no-cnv", "leave it out"),
        (("complete", "-ot", "exps=CPU"), "-ot", "-ngl says how many"),  # not the output file t
        (("complete", "-hff", "a.gguf"), "-hff", "name the file: -hf USER/REPO/FILE.gguf"),  # not -h
        (("complete", "--rope-scaling=yarn"), "--rope-scaling", "positions are scaled as"),
        (("serve", "--lora", "a.gguf"), "--lora", "adapters and control vectors are not loaded"),
        (("serve", "--max-model-len", "512"), "--max-model-len", "it is called -c here"),
        (("complete", "-np", "2"), "-np", "it is an option of `specx batch`, `specx serve`"),
        (("complete", "--port", "80"), "--port", "it is an option of `specx serve`"),
        (("bench", "-p", "512"), "-p", "`specx complete` and `specx chat` take a prompt"),
        (("chat", "--layers", "4"), "--layers", "it is an option of `specx drafter shrink`"),
    ],
)
def test_what_other_programs_call_an_option_is_refused_by_its_name(specx, arguments, option, hint):
    outcome = specx(*arguments)
    assert outcome.code == 2 and outcome.out == ""
    error, told = outcome.err.splitlines()
    assert error == f"error: no such option: {option}" and told.startswith(f"hint: {hint}")


def test_other_names_of_an_option_are_taken(specx):
    for option in ("--spec-draft-ngl", "--gpu-layers-draft"):
        refused = specx("complete", "-p", "x", option, "half")
        assert refused.code == 2 and refused.err.startswith("error: -ngld/--gpu-layers-draft is 'half'")
    assert "'half'" in specx("complete", "-p", "x", "--spec-draft-ngl=half").err
    assert "-ngl/--gpu-layers is 'half'" in specx("complete", "-p", "x", "--n_gpu_layers", "half").err
    assert "no such option: --rope_scaling" in specx("complete", "-p", "x", "--rope_scaling", "yarn").err


def test_values_are_no_options_whatever_they_look_like(specx):
    for text in ("--jinja", "-st"):
        assert "no such option" not in specx("complete", "no.gguf", "-p", text).err


def test_names_of_other_programs_stand_in_one_place_and_what_is_ours_is_left_to_its_commands():
    names = [name for _, several in foreign.INSTEAD for name in several.split()]
    assert len(set(names)) == len(names) and not set(names) & set(foreign.SAME)
    taken = set()
    for command in every_command().values():
        for each in getattr(command, "commands", {"": command}).values():
            taken |= {name for parameter in each.params for name in parameter.opts}
    assert set(foreign.SAME.values()) <= taken
    assert set(names) & taken == {"--device", "--offline", "-p"}  # what others have of those


def test_a_wrong_value_says_that_it_is_from_the_configuration_file(specx, tmp_path, monkeypatch):
    path = tmp_path / "config.toml"
    path.write_text("top-k = 1.5\n")
    monkeypatch.setenv("SPECX_CONFIG", str(path))
    outcome = specx("complete", "-p", "x")
    assert outcome.code == 2
    assert outcome.err.startswith("error: --top-k is 1.5 (from the configuration file)\nhint: give a whole")


def test_a_value_that_the_command_refuses_says_that_it_is_from_the_environment(specx, monkeypatch):
    monkeypatch.setenv("SPECX_CTX_SIZE", "-4")
    outcome = specx("complete", specx.model, "-p", "x")
    assert outcome.code == 2
    assert outcome.err.startswith("error: -c/--ctx-size is -4 (from SPECX_CTX_SIZE)\nhint: give a number")
    outcome = specx("complete", specx.model, "-p", "x", "-c", "-5")
    assert outcome.err.startswith("error: -c/--ctx-size is -5\nhint: give a number")


def test_a_model_that_is_not_there(specx):
    outcome = specx("complete", "nowhere.gguf", "-p", "x")
    assert outcome.code == 1
    assert re.match(r"error: .*'nowhere.gguf'.*\nhint: ", outcome.err)


def test_a_bug_is_one_line_and_a_hint(spawn, model):
    process = spawn("complete", model, "-p", "x", env={"FAKE_BUG": "1"})
    _out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert err == (
        b"error: unexpected RuntimeError: a bug\n"
        b"hint: run it again as `specx --verbose ...` to see where it happened\n"
    )
    process = spawn("--verbose", "complete", model, "-p", "x", env={"FAKE_BUG": "1"})
    _out, err = process.communicate(timeout=PATIENCE)
    assert b"Traceback" in err and b"a bug" in err


def test_no_colour_when_it_is_not_wanted(specx, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    console.stderr.cache_clear()
    try:
        outcome = specx("complete", specx.model, "-p", "")
    finally:
        console.stderr.cache_clear()
    assert "\x1b[3" not in outcome.err and "error: the prompt is empty" in re.sub(
        r"\x1b\[\d+m", "", outcome.err
    )


def test_the_package_runs_as_a_module():
    done = subprocess.run(
        [sys.executable, "-P", "-m", "specx.cli", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("specx ")


def test_a_closed_stdout_is_silent():
    command = f"{sys.executable} -P -m specx.cli complete --help | true"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, check=False)
    assert done.returncode in (0, 141) and done.stderr == b""


def test_ctrl_c_while_the_commands_are_imported(specx, monkeypatch):
    class Interrupted(ModuleType):
        def __getattr__(self, name):
            raise KeyboardInterrupt

    monkeypatch.setitem(sys.modules, "specx.cli.commands", Interrupted("specx.cli.commands"))
    outcome = specx("--help")
    assert (outcome.code, outcome.out, outcome.err) == (130, "", "")


@pytest.mark.parametrize("closed", [0, 1, 2])
def test_streams_that_the_shell_closed(closed):
    done = subprocess.run(
        [sys.executable, "-P", "-m", "specx.cli", "--version"],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: os.close(closed),
    )
    if closed == 1:
        assert done.returncode == 1
        assert done.stderr.startswith("error: standard output is closed\nhint: ")
    else:
        assert done.returncode == 0 and done.stdout.startswith("specx ")


def test_too_many_open_files_are_a_sentence(specx, monkeypatch):
    def full(*_arguments):
        raise OSError(errno.EMFILE, "Too many open files", "/proc/self/task")

    monkeypatch.setattr("specx.cli.commands.invoke", full)
    outcome = specx("show")
    assert outcome.code == 1
    assert outcome.err == "error: too many files are open\nhint: allow more of them: ulimit -n 1024\n"


@pytest.mark.parametrize("size", ["0", "00", ""])
def test_a_terminal_of_no_known_width_is_written_to(spawn, smollm2, size):
    process = spawn("show", smollm2, env={"COLUMNS": size, "LINES": size})
    out, _err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0 and out.startswith(b"file  ")


@pytest.mark.skipif(sys.platform != "linux", reason="addresses are limited there")
@pytest.mark.parametrize("mebibytes", [24, 100])
def test_too_few_addresses_are_a_sentence(mebibytes):
    """Libraries that are loaded within such a limit end the process."""
    command = f"ulimit -v {mebibytes << 10}; exec {sys.executable} -P -m specx.cli show nothing"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    error, hint = done.stderr.splitlines()
    assert error.startswith(f"error: this process may use {mebibytes} MiB of memory (ulimit -v)")
    assert hint == "hint: allow it more: ulimit -v unlimited"


def test_memory_that_ends_is_a_sentence(specx, monkeypatch):
    def greedy(_arguments):
        raise MemoryError

    monkeypatch.setattr("specx.cli.commands.invoke", greedy)
    outcome = specx("--version")
    assert outcome.code == 1 and outcome.err.startswith("error: there is too little memory\nhint: ")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_disk_that_is_full():
    with open("/dev/full", "wb") as full:
        command = [sys.executable, "-P", "-m", "specx.cli", "--version"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
        assert done.returncode == 1
        assert done.stderr.startswith("error: the output cannot be written: No space left on device\nhint: ")
        command[-1] = "nothing"
        assert subprocess.run(command, stdout=subprocess.PIPE, stderr=full, check=False).returncode == 2


def test_a_stdout_that_was_opened_for_reading():
    command = [sys.executable, "-P", "-m", "specx.cli", "--version"]
    with open(os.devnull, "rb") as readable:
        done = subprocess.run(command, stdout=readable, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: the output cannot be written: it was opened for reading\nhint: ")


@pytest.mark.skipif(sys.platform == "win32", reason="a folder in use cannot be deleted there")
def test_writing_into_a_folder_that_was_deleted(specx, tmp_path, monkeypatch):
    folder = tmp_path / "gone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()
    for arguments in (
        ("complete", specx.model, "-p", "x", "-o", "y"),
        ("bench", specx.model, "--save", "y.json"),
    ):
        outcome = specx(*arguments)
        assert outcome.code == 1
        assert outcome.err == "error: the current folder was deleted\nhint: go to another one: cd FOLDER\n"


@pytest.mark.skipif(sys.platform == "win32", reason="a folder in use cannot be deleted there")
def test_a_folder_that_was_deleted(tmp_path):
    here = tmp_path / "here"
    here.mkdir()
    command = [sys.executable, "-P", "-m", "specx.cli", "show", "m.gguf"]
    done = subprocess.run(
        command, cwd=here, preexec_fn=here.rmdir, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("error: no file and no model here is called 'm.gguf'\nhint: ")


def test_notices_wait_for_the_end_of_a_line_on_a_terminal(monkeypatch):
    class Screen(io.StringIO):
        def isatty(self):
            return True

    screen = Screen()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setattr(sys, "stderr", screen)
    console.stderr.cache_clear()
    try:
        console.write("half a ")
        console.notice("later")
        console.write("line")
        console.end_line()
        console.notice("now")
        console.write("half")
        console.error(SpecxError("wrong", "right"))
    finally:
        console.stderr.cache_clear()
    shown = re.sub(r"\x1b\[[\d;]*m", "", screen.getvalue())
    assert shown == "half a line\nlater\nnow\nhalf\nerror: wrong\nhint: right\n"


@pytest.mark.parametrize("quiet", [(), ("-q",)])
def test_in_one_file_with_the_text_notices_begin_lines(spawn, smollm2, tmp_path, quiet):
    asked, path = ("complete", smollm2, "-p", "The", "-n", "4", "--temp", "0"), tmp_path / "log"
    with path.open("wb") as log:
        process = spawn(*asked, *quiet, stdout=log, stderr=log)
        assert process.wait(PATIENCE) == 0
    alone = spawn(*asked).communicate(timeout=PATIENCE)[0].decode()
    text = path.read_text()
    assert text.endswith(alone) if quiet else f"\n{alone}\nseed: " in text


def test_a_table_of_a_command_that_nobody_reads(tmp_path):
    (tmp_path / "build").mkdir()
    (tmp_path / "build" / "x.json").write_text("{}")
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "wb") as pipe:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "specx.cli", "cache", "show"],
            stdout=pipe,
            stderr=subprocess.PIPE,
            check=False,
            env={**os.environ, "SPECX_CACHE": str(tmp_path)},
        )
    assert (done.returncode, done.stderr) == (141, b"")


def test_the_cache_is_shown_and_cleared(specx, tmp_path):
    for kind, name in (("staircase", "abc-t2.json"), ("history", "abc.npz.damaged")):
        path = tmp_path / "cache" / kind / name
        path.parent.mkdir(parents=True)
        path.write_text("{}")
    shown = specx("cache", "show")
    rows = [line.split() for line in shown.out.splitlines()[2:]]
    assert {(row[0], *row[4:]) for row in rows} == {
        ("staircase",),  # of a model that nothing is known of
        ("history", "damaged"),
    }
    assert "`specx cache clear damaged` removes them" in shown.err
    entries = json.loads(specx("cache", "show", "--json").out)["entries"]
    assert sorted((e["key"], e["damaged"]) for e in entries) == [("abc", True), ("abc-t2", False)]
    assert specx("cache", "clear", "damaged").err.startswith("removed 1 entry from ")
    assert specx("cache", "show").err == ""
    wrong = specx("cache", "clear", "everything")
    assert wrong.code == 2 and "staircase, threads, damaged" in wrong.err
    assert specx("cache", "clear").err.startswith("removed 1 entry from ")
    assert specx("cache", "show").out == f"nothing is kept in {tmp_path / 'cache'}\n"


DRAWN = "\x1b]0;title\x07\x1b[31mred \u202egnp\x9b2J caf\u00e9 \U0001f469\u200d\U0001f680"
SHOWN = "\\x1b]0;title\\x07\\x1b[31mred \\u202egnp\\x9b2J caf\u00e9 \U0001f469\u200d\U0001f680"


def test_control_characters_of_files_are_shown_and_not_obeyed(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR")
    caches = (console.stderr, console.stdout)
    for cache in caches:
        cache.cache_clear()
    try:
        console.notice(DRAWN)
        console.error(SpecxError(DRAWN, f"a\n{DRAWN}"))
        show_table(("name",), [(f"{DRAWN}\nb\tc",)])
        console.stdout().print(DRAWN)
    finally:
        for cache in caches:
            cache.cache_clear()
    told = capsys.readouterr()
    err, out = (re.sub(r"\x1b\[[\d;]*m", "", text) for text in (told.err, told.out))
    assert "\x1b[1;31m" in told.err  # what specx colours itself stays so
    assert err == f"{SHOWN}\nerror: {SHOWN}\nhint: a\n{SHOWN}\n"
    assert out == f"name\n{SHOWN}\\nb\\tc\n{SHOWN}\n"
