"""Schemas, and the errors for keys and values that do not fit them."""

import subprocess
import sys
from typing import Literal

import pytest
from pydantic import BaseModel, ConfigDict

from dens.settings import ConfigError, known_keys, parse_settings, setting, unknown_key


class Soup(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    temperature: float = setting("a number > 0", "of the soup", default=60.0, unit="°C", gt=0)
    kind: Literal["clear", "thick"] = setting("'clear' or 'thick'", "its kind", default="clear")


def problem(settings, where="soup", **options) -> str:
    with pytest.raises(ConfigError) as error:
        parse_settings(Soup, settings, where, **options)
    return str(error.value)


def test_known_keys_are_the_fields():
    assert known_keys(Soup) == ("temperature", "kind")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temprature": 3}, "unknown key temprature = 3 (soup.temprature): did you mean temp"),
        ({"salt": 3}, "unknown key salt = 3 (soup.salt): the keys are temperature, kind"),
        ({"salt": {"of": "sea"}}, "unknown key salt (soup.salt): the keys are temperature, kind"),
        ({3: 4}, "unknown key 3 = 4 (soup.3): the keys are"),
        ({"temperature": "1e2"}, "got '1e2', a string; YAML reads 1e2 as one, write 1.0e+2"),
        ({"temperature": "2.5E3"}, "YAML reads 2.5E3 as one, write 2.5e+3"),
        ({"temperature": "-1e-3"}, "YAML reads -1e-3 as one, write -1.0e-3"),
        ({"temperature": "5"}, "temperature must be a number > 0, got '5', a string (soup.temp"),
        ({"temperature": "hot"}, "temperature must be a number > 0, got 'hot' (soup.temperature)"),
        ({"kind": "thin"}, "kind must be 'clear' or 'thick', got 'thin' (soup.kind)"),
    ],
)
def test_errors_name_key_expected_and_given(settings, message):
    assert problem(settings).startswith(message) or message in problem(settings)
    assert "\n" not in problem(settings)


def test_keys_of_the_top_level_have_no_section():
    assert problem({"kidn": 3}, "") == "unknown key kidn = 3 (kidn): did you mean kind?"
    assert unknown_key("a", 1, "", ["b"]) == "unknown key a = 1 (a): the keys are b"


def test_lenient_sections_refuse_near_misses_only():
    assert parse_settings(Soup, {"salt": 3, "kind": "thick"}, "soup", lenient=True).kind == "thick"
    assert "did you mean temperature?" in problem({"temperatur": 3, "salt": 3}, lenient=True)
    assert "salt" not in problem({"temperatur": 3, "salt": 3}, lenient=True)


def test_errors_alone_do_not_import_pydantic():
    script = "import sys, dens.settings; print('pydantic' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr
