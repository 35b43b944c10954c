from __future__ import annotations

from pathlib import Path

import pytest

from app.errors import BadSettings
from app.settings import Settings, reference


def test_settings_come_from_the_environment() -> None:
    environ = {"TWEEN_PORT": "9000", "TWEEN_T_HIGH": "1.5", "REDIS_URL": "redis://cache:6379/1"}
    settings = Settings.from_environment({**environ, "PATH": "/bin", "TWEEN_HOST": ""})
    assert (settings.port, settings.t_high, settings.redis_url) == (9000, 1.5, "redis://cache:6379/1")
    assert settings.host == "127.0.0.1"


def test_the_command_line_wins_where_it_says_something() -> None:
    settings = Settings.from_environment({"TWEEN_PORT": "9000", "TWEEN_HOST": "::1"}, port=9001, host=None)
    assert (settings.port, settings.host) == (9001, "::1")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("TWEEN_MEMRY_TIER_MIB", "5"),
        ("TWEEN_PORT", "tcp://10.0.0.1:8000"),
        ("TWEEN_PORT", "70000"),
        ("TWEEN_T_LOW", "nan"),
        ("TWEEN_LOG_LEVEL", "loud"),
        ("TWEEN_MEMORY_TIER_MIB", "0"),
        ("TWEEN_REDIS_NAMESPACE", "a:b"),
    ],
)
def test_a_wrong_setting_is_refused_by_its_name(name: str, value: str) -> None:
    with pytest.raises(BadSettings, match=name):
        Settings.from_environment({name: value})


def test_a_refusal_does_not_show_the_value() -> None:
    with pytest.raises(BadSettings) as refusal:
        Settings.from_environment({"TWEEN_REDIS_NAMESPACE": "s3cret:password"})
    assert "s3cret" not in str(refusal.value)


def test_the_settings_page_is_what_make_settings_writes() -> None:
    page = Path(__file__).parent.parent / "docs" / "settings.md"
    assert page.read_text(encoding="utf-8") == reference()
