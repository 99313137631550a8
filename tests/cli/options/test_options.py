from __future__ import annotations

import math
import os
from dataclasses import fields, replace

import pytest

from specx.backends.errors import UsageError
from specx.cli.options.groups import DRAFTERS
from specx.cli.options.read import (
    DraftOptions,
    ModelOptions,
    SamplingOptions,
    read_asked,
    sampling_settings,
)
from specx.drafters import registry
from specx.engine.settings import Asked, AskedModel, SamplingSettings


@pytest.fixture
def settings(specx):
    """The settings that a command line leads to."""

    def parse(*arguments: str):
        outcome = specx("complete", specx.model, "-p", "x", "-q", *arguments)
        assert outcome.code == 0, outcome.err
        parse.notices = outcome.err
        assert specx.settings[-1].answers == 1  # it writes one and ends
        asked = replace(specx.settings[-1], answers=None, longest=None)
        return asked, specx.session.samplings[-1]

    return parse


def test_defaults_are_those_of_the_settings(settings, model):
    load, sampling = settings()
    assert load == Asked(model)
    assert sampling == SamplingSettings()
    assert sampling_settings(SamplingOptions()) == SamplingSettings()


def test_every_name_that_people_know(settings, model):
    load, sampling = settings(
        *("-c", "512", "-t", "2", "-tb", "3", "-b", "64", "-ub", "32", "-ngl", "7", "-fa", "off"),
        *("-ctk", "q8_0", "-ctv", "BF16", "--no-mmap", "--mlock", "--swa-full", "--context-shift", "--exact"),
        *("--drafter", "none", "--draft-max", "4", "--no-cache", "--no-packed-copy", "-v"),
        *("-s", "9", "--temp", "0", "--top-k", "3", "--top-p", "0.5", "--min-p", "0.1", "--typical", "0.9"),
        *("--repeat-penalty", "1.1", "--repeat-last-n", "-1", "--frequency-penalty", "-0.5"),
        *("--presence-penalty", "0.25", "-l", "15+1.5", "-l", "16-inf"),
    )
    assert load == Asked(
        model,
        n_ctx=512,
        threads=2,
        threads_batch=3,
        n_batch=64,
        n_ubatch=32,
        n_gpu_layers=7,
        flash_attn="off",
        type_k="q8_0",
        type_v="bf16",
        mmap=False,
        mlock=True,
        packed_copy=False,
        swa_full=True,
        context_shift=True,
        exact=True,
        drafter="none",
        draft_max=4,
        store=False,
        verbose=True,
    )
    assert sampling == SamplingSettings(
        seed=9,
        temperature=0,
        top_k=3,
        top_p=0.5,
        min_p=0.1,
        typical_p=0.9,
        repeat_penalty=1.1,
        repeat_last_n=-1,
        frequency_penalty=-0.5,
        presence_penalty=0.25,
        logit_bias={15: 1.5, 16: -math.inf},
    )


@pytest.mark.parametrize(
    ("long", "short"),
    [
        (("--ctx-size", "5"), ("-c", "5")),
        (("--gpu-layers", "3"), ("--n-gpu-layers", "3")),
        (("--gpu-layers", "all"), ("-ngl", "-1")),
        (("--temperature", "0.5"), ("--temp", "0.5")),
        (("--typical-p", "0.5"), ("--typical", "0.5")),
        (("--flash-attn", "true"), ("-fa", "on")),
        (("--threads", "-1"), ()),
        (("--seed", "-1"), ()),
    ],
)
def test_two_spellings_of_one_thing(settings, long, short):
    assert settings(*long) == settings(*short)


def test_a_model_can_be_named_in_three_ways(specx):
    for named in ((specx.model,), ("-m", specx.model), ("--model", specx.model)):
        assert specx("complete", *named, "-p", "x").code == 0
    twice = specx("complete", specx.model, "-m", "other.gguf", "-p", "x")
    assert twice.code == 2 and "more than one model is named" in twice.err
    missing = specx("complete", "-hf", "no/such-repo", "-p", "x")
    assert missing.code == 1 and "no/such-repo" in missing.err


@pytest.fixture(autouse=True)
def _offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.mark.parametrize("name", ["--draft", "--draft-n", "--spec-draft-n-max"])
def test_older_names_work_with_a_notice(settings, name):
    load, _sampling = settings(name, "5")
    assert load.draft_max == 5
    assert "older names of --draft-max" in settings.notices
    assert settings(name, "5", "--draft-max", "6")[0].draft_max == 6


@pytest.mark.parametrize("name", ["-md", "--model-draft", "--spec-draft-model"])
def test_a_draft_model_and_how_it_is_loaded(settings, name, model, tmp_path):
    draft = tmp_path / "small.gguf"
    draft.touch()
    flags = ("-td", "2", "-tbd", "3", "-ngld", "all", "-ctkd", "q8_0", "-ctvd", "bf16")
    assert settings(name, str(draft), *flags)[0] == Asked(
        model,
        draft=AskedModel(draft, 2, 3, -1, "q8_0", "bf16"),
    )
    assert settings(name, str(draft), "-ngld", "auto", "-td", "-1")[0] == Asked(
        model, draft=AskedModel(draft)
    )


def test_a_file_may_stand_for_a_drafter(settings, specx, model, tmp_path):
    head = tmp_path / "head.GGUF"
    head.touch()
    assert settings("--drafter", str(head))[0] == Asked(model, draft=AskedModel(head))
    both = specx("complete", specx.model, "-p", "x", "--drafter", str(head), "-md", str(head))
    assert both.code == 2 and "give either --drafter FILE or -md FILE" in both.err


def test_a_draft_model_that_is_not_there(specx):
    outcome = specx("complete", specx.model, "-p", "x", "-md", "small.gguf")
    assert (outcome.code, outcome.out) == (1, "")
    assert "small.gguf" in outcome.err
    both = specx("complete", specx.model, "-p", "x", "-md", "small.gguf", "-hfd", "org/repo")
    assert both.code == 2 and "give either -md or -hfd" in both.err


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (("-fa", "maybe"), "allowed are on, off, auto"),
        (("-ctk", "q3_k"), "allowed are f32, f16"),
        (("-ctv", "q8_0", "-fa", "off"), "keep values in f16 (-ctv f16)"),
        (("-ctvd", "q8_0", "-fa", "off"), "keep values in f16 (-ctvd f16)"),
        (("-ngl", "most"), "a number of layers, auto or all"),
        (("--drafter", "magic"), "allowed are auto, none, free, suffix, recycle, model, FILE.gguf"),
        (("-ngld", "most"), "a number of layers, auto or all"),
        (("-ctkd", "q3_k"), "allowed are f32, f16"),
        (("--draft-max", "-1"), "at least 0"),
        (("-c", "-5"), "at least 0"),
        (("-t", "0"), "at least 1"),
        (("-b", "0"), "at least 1"),
        (("--temp", "-1"), "of at least 0"),
        (("--temp", "nan"), "of at least 0"),
        (("--top-p", "1.5"), "from 0 to 1"),
        (("--min-p", "-0.1"), "from 0 to 1"),
        (("--repeat-penalty", "0"), "1 switches it off"),
        (("--repeat-last-n", "-2"), "at least -1"),
        (("--frequency-penalty", "inf"), "give a number"),
        (("--frequency-penalty", "1e39"), "from -3.4e+38 to 3.4e+38"),
        (("--presence-penalty", "-1e39"), "from -3.4e+38 to 3.4e+38"),
        (("--presence-penalty", "nan"), "give a number"),
        (("--repeat-penalty", "1e39"), "from 0 to 3.4e+38"),
        (("--repeat-penalty", "nan"), "of at least 0"),
        (("--temp", "1e39"), "from 0 to 3.4e+38"),
        (("--temp", "inf"), "from 0 to 3.4"),
        (("--typical", "nan"), "from 0 to 1"),
        (("--top-k", "nan"), "--help"),
        (("-l", "15+1e39"), "from -3.4e+38 to 3.4e+38"),
        (("-l", "15nan"), "15043+1"),
        (("-l", "9" * 5000 + "+1"), "15043+1"),
        (("-s", "-2"), "or -1"),
        (("-l", "15"), "15043+1"),
        (("-l", "x+1"), "15043+1"),
        (("-n", "many"), "--help"),
        (("-t", "513"), "at most 512 threads"),
        (("-tb", "1000"), "at most 512 threads"),
        (("-n", "-2"), "-1"),
        (("-r", ""), "leave it out"),
        (("--rpc", " , "), "write HOST:PORT"),
    ],
)
def test_a_wrong_value_says_what_is_allowed(specx, arguments, hint):
    outcome = specx("complete", specx.model, "-p", "x", *arguments)
    assert outcome.code == 2, outcome.err
    assert outcome.err.startswith("error: ") and hint in outcome.err.partition("hint: ")[2]


def test_values_at_the_limits_mean_what_the_limit_means(settings):
    _load, sampling = settings("--temp", "1e-310", "--top-k", "9" * 30, "-l", "3+1e3", "-l", "4-inf")
    assert (sampling.temperature, sampling.top_k) == (0, 2**31 - 1)
    assert sampling.logit_bias == {3: 1000.0, 4: -math.inf}
    assert settings("--top-k", "-1", "--temp", "-0.0")[1] == settings("--top-k", "0", "--temp", "0")[1]


def test_a_flag_beats_the_environment_beats_the_file(settings, monkeypatch, tmp_path):
    (tmp_path / "config.toml").write_text('ctx-size = 100\ntemp = 0.1\nstop = ["a", "b"]\nmmap = false\n')
    load, sampling = settings()
    assert (load.n_ctx, sampling.temperature, load.mmap) == (100, 0.1, False)
    monkeypatch.setenv("LLAMA_ARG_CTX_SIZE", "200")
    assert settings()[0].n_ctx == 200
    monkeypatch.setenv("SPECX_CTX_SIZE", "300")
    monkeypatch.setenv("SPECX_MLOCK", "1")
    load, _sampling = settings()
    assert (load.n_ctx, load.mlock) == (300, True)
    load, _sampling = settings("-c", "400", "--mmap")
    assert (load.n_ctx, load.mmap) == (400, True)


def test_a_named_model_beats_one_of_the_environment_or_the_file(specx, monkeypatch, tmp_path):
    other = tmp_path / "other.gguf"
    other.touch()
    (tmp_path / "config.toml").write_text(f'model = "{other}"\n')
    specx("complete", "-p", "x")
    assert specx.settings[-1].model == other
    assert specx("complete", specx.model, "-p", "x").code == 0
    assert str(specx.settings[-1].model) == specx.model
    monkeypatch.setenv("LLAMA_ARG_HF_REPO", "no/such-repo")
    assert specx("complete", "-m", specx.model, "-p", "x").code == 0
    assert str(specx.settings[-1].model) == specx.model


def test_a_home_directory_may_be_abbreviated(specx, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("prompt.txt", "root.gbnf"):
        (tmp_path / name).write_text(f'root ::= "{name}"')
    monkeypatch.setenv("SPECX_GRAMMAR_FILE", "~/root.gbnf")
    config = tmp_path / "other.toml"
    config.write_text('file = "~/prompt.txt"\n')
    monkeypatch.setenv("SPECX_CONFIG", "~/other.toml")
    assert specx("complete", specx.model, "--output=~/answer.txt").code == 0
    assert specx.session.prompts == ['<s>root ::= "prompt.txt"']
    assert specx.session.requests[0]["constraint"] == 'root ::= "root.gbnf"'
    assert (tmp_path / "answer.txt").exists()


PROFILES = """
temp = 0.1
[aliases]
tiny = "{model}"
lost = "nowhere"
[profiles.poet]
temp = 1.5
model = "tiny"
json = true
markdown = true
[profiles.clerk]
temp = 0
"""


def test_a_profile_is_stronger_than_the_file_and_weaker_than_flags(specx, monkeypatch, tmp_path):
    other = tmp_path / "other.gguf"
    other.touch()
    (tmp_path / "config.toml").write_text(PROFILES.format(model=other))
    outcome = specx("complete", "--profile", "poet", "-p", "x")
    assert outcome.out.startswith("{") and specx.settings[-1].model == other
    assert specx.session.samplings[-1].temperature == 1.5
    assert specx("complete", "--profile=poet", "--temp", "0.7", "-p", "x", specx.model).code == 0
    assert specx.session.samplings[-1].temperature == 0.7 and str(specx.settings[-1].model) == specx.model
    monkeypatch.setenv("SPECX_PROFILE", "clerk")
    assert specx("complete", specx.model, "-p", "x").out.startswith("Hello")
    assert specx.session.samplings[-1].temperature == 0
    monkeypatch.delenv("SPECX_PROFILE")
    assert specx("complete", specx.model, "-p", "x").code == 0
    assert specx.session.samplings[-1].temperature == 0.1


def test_a_profile_that_is_not_there_is_told(specx, monkeypatch, tmp_path):
    (tmp_path / "config.toml").write_text(PROFILES.format(model="x"))
    wrong = specx("complete", "--profile", "pot", "-p", "x")
    assert wrong.code == 2
    assert "there is no profile 'pot'\nhint: there are poet, clerk" in wrong.err
    empty = specx("complete", "--profile", "", "-p", "x")
    assert empty.code == 2 and "there is no profile ''" in empty.err
    (tmp_path / "config.toml").write_text("")
    wrong = specx("complete", "--profile", "poet", "-p", "x")
    assert wrong.code == 2 and "below a line [profiles.poet]" in wrong.err
    monkeypatch.delenv("SPECX_CONFIG")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "none"))
    wrong = specx("complete", "--profile", "poet", "-p", "x")
    assert wrong.code == 2 and f"{tmp_path}/none/specx/config.toml" in wrong.err


def test_an_alias_is_a_name_wherever_a_model_is_named(specx, tmp_path):
    other = tmp_path / "other.gguf"
    other.touch()
    (tmp_path / "config.toml").write_text(PROFILES.format(model=other))
    for named in (("tiny",), ("-m", "tiny")):
        assert specx("complete", *named, "-p", "x").code == 0
        assert specx.settings[-1].model == other
    assert specx("complete", specx.model, "-md", "tiny", "-p", "x").code == 0
    assert specx.settings[-1].draft.model == other
    wrong = specx("complete", "lost", "-p", "x")
    assert wrong.code == 1 and "the alias lost: no file and no model here is called 'nowhere'" in wrong.err
    close = specx("complete", "tinny", "-p", "x")
    assert close.code == 1 and "did you mean tiny?" in close.err


def test_an_alias_that_names_an_alias_is_not_advised_to(specx, tmp_path):
    (tmp_path / "config.toml").write_text('[aliases]\nround = "around"\naround = "round"\n')
    wrong = specx("complete", "round", "-p", "x")
    assert wrong.code == 1 and "the alias round: no file and no model here is called 'around'" in wrong.err
    assert "did you mean" not in wrong.err


def test_folders_of_models_are_searched(specx, monkeypatch, tmp_path):
    for folder in ("mine/deep", "theirs"):
        (tmp_path / folder).mkdir(parents=True)
    for file in ("mine/deep/one.gguf", "theirs/two.gguf"):
        (tmp_path / file).write_bytes(b"GGUF")
    (tmp_path / "config.toml").write_text(f'models = ["{tmp_path}/mine"]\n')
    monkeypatch.setenv("SPECX_MODELS", f"{tmp_path}/theirs{os.pathsep}{tmp_path}/nowhere")
    listed = specx("show", "--list")
    found = {line.split()[0]: line for line in listed.out.splitlines()}
    assert f"{tmp_path}/mine" in found["deep/one"] and f"{tmp_path}/theirs" in found["two"]
    assert f"{tmp_path}/nowhere, where models are looked for, is no folder" in listed.err
    assert specx("complete", "deep/one", "-p", "x").code == 0
    assert specx.settings[-1].model == tmp_path / "mine" / "deep" / "one.gguf"


def test_messages_of_llama_cpp_have_a_file_of_their_own(settings, monkeypatch):
    assert settings("-v")[0].log == "" and settings("--log-file", "-")[0].log == "-"
    monkeypatch.setenv("HOME", "/home/somebody")
    assert settings("--log-file", "~/x.log")[0].log == "/home/somebody/x.log"


def test_a_table_is_for_one_command(specx, tmp_path):
    (tmp_path / "config.toml").write_text("[chat]\ntemp = 0.1\n[complete]\njson = true\nlogit-bias = '1+2'\n")
    outcome = specx("complete", specx.model, "-p", "x")
    assert outcome.out.startswith("{")
    assert specx.session.samplings[-1].temperature == SamplingSettings().temperature
    assert specx.session.samplings[-1].logit_bias == {1: 2.0}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("temp = ", "is not valid TOML"),
        ("tmep = 1", "there is no option 'tmep'\nhint: did you mean temp"),
        ("[chatt]\ntemp = 1", "there is no command 'chatt'"),
        ("[chat]\njson = true", "there is no option 'chat.json'"),
        ('mlock = "yes"', "mlock is 'yes'\nhint: give true or false"),
        ("temp = [1, 2]", "temp is [1, 2]"),
        ("temp = " + "[" * 100_000, "is not valid TOML"),
        ("temp" + ".a" * 100_000 + " = 1", "thousands of dots"),
        ("# " + "x" * (1 << 21), "is too long"),
        ("[profiles.poet]\ntmep = 1", "there is no option 'profiles.poet.tmep'\nhint: did you mean temp"),
        ("profiles = 1", "write [profiles.NAME]"),
        ("[aliases]\nx = 1", "aliases are no names of models"),
        ("models = [[1]]", "models is [1]"),
        (r'models = "a\u0000b"', r"models is 'a\x00b'"),
        (r'log-file = "a\u0000b"', r"log-file is 'a\x00b'"),
        ('models = ""', "models holds an empty name"),
        ('[profiles.poet]\nprofile = "clerk"', "the profile poet names a profile"),
    ],
    ids=range(17),
)
def test_a_wrong_configuration_is_named(specx, tmp_path, content, message):
    (tmp_path / "config.toml").write_text(content)
    outcome = specx("complete", specx.model, "-p", "x")
    assert outcome.code == 2
    assert "config.toml" in outcome.err and message in outcome.err
    assert specx("--help").code == 0


@pytest.mark.parametrize("name", ["nowhere.toml", "."])
def test_a_configuration_that_is_named_must_be_there(specx, tmp_path, monkeypatch, name):
    monkeypatch.setenv("SPECX_CONFIG", str(tmp_path / name))
    outcome = specx("complete", specx.model, "-p", "x")
    assert outcome.code == 1 and outcome.out == ""
    assert "error: cannot read the configuration" in outcome.err and "hint: let SPECX_CONFIG" in outcome.err


def test_the_groups_cover_the_settings():
    names = {field.name for field in fields(Asked)}
    known = {field.name for group in (ModelOptions, DraftOptions) for field in fields(group)}
    renamed = {
        "n_ctx": "ctx_size",
        "n_batch": "batch_size",
        "n_ubatch": "ubatch_size",
        "n_gpu_layers": "gpu_layers",
        "type_k": "cache_type_k",
        "type_v": "cache_type_v",
        "store": "no_cache",
        "log": "log_file",
        "draft": "draft_model",
    }
    elsewhere = {
        "measure",
        "texts",
        "answers",
        "longest",
        "adapt",
        "idle",
    }  # follow from -n, and from the command
    assert {renamed.get(name, name) for name in names - elsewhere} <= known
    drafts = {f"{renamed.get(field.name, field.name)}_draft" for field in fields(AskedModel)}
    assert drafts - {"model_draft"} <= known
    assert {field.name for field in fields(SamplingSettings)} == {
        field.name for field in fields(SamplingOptions)
    }


def test_the_drafters_are_those_of_the_engine():
    assert registry.names()[: len(DRAFTERS)] == DRAFTERS
    assert all(registry.find(name).build for name in DRAFTERS)


def test_settings_from_options_alone(model):
    assert read_asked(ModelOptions(model=str(model))) == Asked(model)
    with pytest.raises(UsageError):
        read_asked(ModelOptions(model=str(model), hf_repo="a/b"))
