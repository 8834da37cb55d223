from __future__ import annotations

from pathlib import Path

import pytest

from glmchat.errors import UsageError
from glmchat.settings import (
    Settings,
    default_config_path,
    flag,
    load_settings,
    nearest,
    table,
    unknown_variables,
)
from glmchat.tools.run import MARK


def write(folder: Path, text: str) -> str:
    path = folder / "config.toml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_each_source_overrides_the_one_below(tmp_path: Path) -> None:
    config = write(tmp_path, 'model = "from-file"\nseed = 1\nmax_tokens = 5\ntemperature = 1\n')
    environ = {"GLMCHAT_SEED": "2", "GLMCHAT_MAX_TOKENS": "6"}
    settings = load_settings({"max_tokens": 7}, environ, config)
    assert (settings.model, settings.temperature, settings.seed, settings.max_tokens) == (
        "from-file",
        1,
        2,
        7,
    )
    assert settings.top_p == Settings().top_p


def test_nothing_set_gives_the_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    assert str(default_config_path()).startswith(str(tmp_path))
    assert load_settings({}, {}) == Settings()


def test_every_setting_can_stand_in_the_environment(tmp_path: Path) -> None:
    config = write(tmp_path, "")
    spelled = {"a number": "0.5", "a whole": "3", "true or": "yes"}
    for entry in table():
        kind = entry.metadata["kind"]
        text = next((v for k, v in spelled.items() if kind.expects.startswith(k)), "word")
        text = "no" if entry.default is True else text
        text = kind.choices[-1] if kind.choices else text
        settings = load_settings({}, {f"GLMCHAT_{entry.name.upper()}": text}, config)
        value = getattr(settings, entry.name)
        assert value != entry.default
        assert value in (0.5, 3, True, False, text, (text,))


def test_tokens_are_taken_from_hf_token_and_not_shown(tmp_path: Path) -> None:
    config = write(tmp_path, "")
    settings = load_settings({}, {"HF_TOKEN": "hf_secret"}, config)
    assert settings.token == "hf_secret"
    assert "hf_secret" not in repr(settings)


def test_an_empty_variable_is_not_set(tmp_path: Path) -> None:
    assert load_settings({}, {"GLMCHAT_MODEL": ""}, write(tmp_path, "")).model is None


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("temprature = 1", "unknown key 'temprature'; did you mean temperature?"),
        ("zzz = 1", "unknown key 'zzz'; known are model"),
        ('temperature = "warm"', "temperature must be a number from 0 to 2, not 'warm'."),
        ('temperature = "1"', "temperature must be a number from 0 to 2, not '1'."),
        ("temperature = true", "temperature must be a number"),
        ("temperature = nan", "temperature must be a number"),
        ("max_tokens = 1.5", "max_tokens must be a whole number from 1"),
        ("max_tokens = 0", "max_tokens must be a whole number from 1"),
        ("seed = true", "seed must be a whole number"),
        ("think = 1", "think must be true or false, not 1."),
        ('dtype = "int4"', "dtype must be one of auto, bfloat16, float16, float32, not 'int4'."),
        ("model = 4", "model must be a text that is not empty, not 4."),
        ('model = ""', "model must be a text that is not empty"),
        ("[model]\nname = 'x'", "model must be a text"),
        ("model = ", "not valid TOML"),
    ],
)
def test_a_wrong_config_is_named_with_file_and_key(tmp_path: Path, text: str, says: str) -> None:
    config = write(tmp_path, text)
    with pytest.raises(UsageError) as caught:
        load_settings({}, {}, config)
    assert says in str(caught.value)
    assert config in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_named_config_must_exist_and_be_utf8(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        load_settings({}, {}, str(tmp_path / "none.toml"))
    with pytest.raises(UsageError, match="does not exist"):
        load_settings({}, {"GLMCHAT_CONFIG": str(tmp_path / "none.toml")})
    with pytest.raises(UsageError, match=r"cannot be read: .*; name another by --config\."):
        load_settings({}, {}, str(tmp_path))
    (tmp_path / "latin.toml").write_bytes('model = "\xe9"'.encode("latin1"))
    with pytest.raises(UsageError, match="not UTF-8 at byte 9"):
        load_settings({}, {}, str(tmp_path / "latin.toml"))


@pytest.mark.parametrize(
    ("name", "text"), [("TOP_P", "2"), ("SEED", "x"), ("THINK", "maybe"), ("TOP_K", "1e3")]
)
def test_a_wrong_variable_is_named(tmp_path: Path, name: str, text: str) -> None:
    with pytest.raises(UsageError, match=f"GLMCHAT_{name} must be .*, not '{text}'"):
        load_settings({}, {f"GLMCHAT_{name}": text}, write(tmp_path, ""))


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("MODLE", "; did you mean GLMCHAT_MODEL?"),
        ("model", "; did you mean GLMCHAT_MODEL?"),
        ("NO_THINK", "; did you mean GLMCHAT_THINK?"),
        ("CONFG", "; did you mean GLMCHAT_CONFIG?"),
        ("XYZZY", "."),
    ],
)
def test_an_unknown_variable_is_named_and_no_fault(tmp_path: Path, name: str, hint: str) -> None:
    environ = {f"GLMCHAT_{name}": "1"}
    assert unknown_variables(environ) == [
        f"The environment variable GLMCHAT_{name} is unknown, and ignored{hint}"
    ]
    assert load_settings({}, environ, write(tmp_path, "")) == Settings()


def test_other_variables_are_not_named() -> None:
    ours = [f"GLMCHAT_{entry.name.upper()}" for entry in table()]
    others = ["GLMCHAT_CONFIG", MARK, "GLMCHAT_TEST_LARGEST", "MODLE", "HF_TOKEN"]
    assert unknown_variables(dict.fromkeys([*ours, *others], "1")) == []
    assert unknown_variables({"GLMCHAT_MODLE": ""}) == []


def test_a_config_may_begin_with_a_mark_of_its_encoding(tmp_path: Path) -> None:
    config = write(tmp_path, "\ufeffseed = 3\r\n")
    assert load_settings({}, {}, config).seed == 3


def test_paths_in_the_config_are_relative_to_it(tmp_path: Path) -> None:
    settings = load_settings(
        {}, {}, write(tmp_path, 'tools = "tools.json"\noffload_dir = "/abs"\nsystem = "@s.txt"')
    )
    assert settings.tools == (str(tmp_path / "tools.json"),)
    several = load_settings({}, {}, write(tmp_path, 'tools = ["a.json", "none"]'))
    assert several.tools == (str(tmp_path / "a.json"), "none")
    assert settings.offload_dir == "/abs"
    assert settings.system == f"@{tmp_path / 's.txt'}"


def test_names() -> None:
    assert flag("top_p") == "--top-p"
    assert nearest("--modle", ["--model", "--seed"]) == "; did you mean --model?"
    assert nearest("qqq", ["--model"]) == ""
