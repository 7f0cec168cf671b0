"""Settings of a webhook: all of them or none, refused in words that hold nothing secret."""

import pytest

from app.settings import Settings
from app.settings_sources import SettingsError

WHOLE = {
    "CONVENER_WEBHOOK_URL": "https://hooks.example.org/x?token=hidden",
    "CONVENER_WEBHOOK_HOSTS": "pager.example.org, hooks.example.org",
    "CONVENER_WEBHOOK_SECRET": "a secret for tests only",
}


def test_it_is_off_unless_it_is_asked_for() -> None:
    assert Settings.from_environment({}).webhook is None
    assert Settings.from_environment({**WHOLE, "CONVENER_WEBHOOK_URL": ""}).webhook is None


def test_all_three_make_an_endpoint() -> None:
    found = Settings.from_environment(WHOLE).webhook
    assert found is not None
    assert (found.host, found.port, found.target) == ("hooks.example.org", 443, "/x?token=hidden")


def test_what_is_secret_is_in_no_repr() -> None:
    text = repr(Settings.from_environment(WHOLE))
    assert "hidden" not in text
    assert WHOLE["CONVENER_WEBHOOK_SECRET"] not in text


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"CONVENER_WEBHOOK_URL": "http://hooks.example.org/x?token=hidden"}, "must begin with https"),
        ({"CONVENER_WEBHOOK_URL": "https://169.254.169.254/latest"}, "must name a host"),
        ({"CONVENER_WEBHOOK_URL": "https://höoks.example.org/x?token=hidden"}, "in ASCII"),
        ({"CONVENER_WEBHOOK_HOSTS": ""}, "not among those that are allowed"),
        ({"CONVENER_WEBHOOK_SECRET": ""}, "the secret must have 16 characters"),
    ],
)
def test_what_is_not_safe_ends_the_start(changes: dict[str, str], why: str) -> None:
    with pytest.raises(SettingsError, match=why) as caught:
        Settings.from_environment({**WHOLE, **changes})
    assert str(caught.value).startswith("CONVENER_WEBHOOK_URL: ")
    assert "hidden" not in str(caught.value)
