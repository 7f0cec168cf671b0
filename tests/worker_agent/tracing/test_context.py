"""`traceparent`, as the standard has it."""

import pytest

from worker_agent.tracing.context import TraceContext, is_sampled, read_traceparent

_TRACE, _SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.mark.parametrize(("flags", "expected"), [("01", True), ("00", False), ("03", True), ("fe", False)])
def test_a_context_is_read_and_written(flags: str, expected: bool) -> None:
    text = f"00-{_TRACE}-{_SPAN}-{flags}"
    context = read_traceparent(text)
    assert context == TraceContext(_TRACE, _SPAN, expected)
    assert is_sampled(text) is expected
    assert context.text == f"00-{_TRACE}-{_SPAN}-{'01' if expected else '00'}"


def test_a_later_version_may_say_more() -> None:
    assert read_traceparent(f"cc-{_TRACE}-{_SPAN}-01-what-comes-later") == TraceContext(_TRACE, _SPAN, True)


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "x",
        f"ff-{_TRACE}-{_SPAN}-01",
        f"00-{_TRACE}-{_SPAN}-01-more",
        f"00-{_TRACE}-{_SPAN}-1",
        f"00-{_TRACE.upper()}-{_SPAN}-01",
        f"00-{'0' * 32}-{_SPAN}-01",
        f"00-{_TRACE}-{'0' * 16}-01",
        f"00-{_TRACE}-{_SPAN}-01\n",
        f" 00-{_TRACE}-{_SPAN}-01",
        "00-" + "1" * 10_000,
    ],
)
def test_what_is_none_is_ignored(text: str | None) -> None:
    assert read_traceparent(text) is None
