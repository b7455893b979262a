"""Settings come from flags, then the environment, then the defaults; what is wrong is named in one line."""

import pytest

from service.settings import Settings, SettingsError, read_settings


def test_flags_win_over_the_environment_and_that_over_the_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVICE_PORT", "9000")
    monkeypatch.setenv("SERVICE_MAX_QUEUE", "500")
    settings = read_settings({"port": "9001"})
    assert (settings.port, settings.max_queue, settings.max_batch_size) == (9001, 500, 32)


def test_an_unknown_variable_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVICE_MAX_BATCHSIZE", "8")
    with pytest.raises(SettingsError, match="SERVICE_MAX_BATCHSIZE is not a setting"):
        read_settings({})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SERVICE_PORT", "eighty"),
        ("SERVICE_PORT", "70000"),
        ("SERVICE_DEVICE", "gpu"),
        ("SERVICE_MAX_BATCH_SIZE", "0"),
        ("SERVICE_LOG_FORMAT", "xml"),
        ("SERVICE_MAX_QUEUE", "10"),  # smaller than one allowed batch request
        ("SERVICE_API_KEYS", " , "),  # as of "$A,$B" where neither is set: it would be open to everybody
        ("SERVICE_API_KEYS", "sha256:abcd"),
        ("SERVICE_API_KEYS", "SHA256:abcd"),
        ("SERVICE_OTLP_ENDPOINT", "collector"),
        ("SERVICE_DRAIN_TIMEOUT_MS", str(10**18)),
    ],
)
def test_a_bad_value_is_refused_in_one_line(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as refused:
        read_settings({})
    message = str(refused.value)
    assert "\n" not in message
    assert name in message or name.removeprefix("SERVICE_").lower() in message
    assert "abcd" not in message, "a key is shown to nobody"


def test_every_setting_is_documented() -> None:
    assert all(field.description for field in Settings.model_fields.values())
