"""The pages of reference that are made from the code are as the code is now."""

import pytest

from docs import generate


@pytest.mark.parametrize("page", generate.PAGES)
def test_the_page_is_as_the_code_is(page: str) -> None:
    text = generate.path_of(page).read_text(encoding="utf-8")
    assert text == generate.text_of(page), f"{generate.path_of(page)} is stale: run `make reference`"


def test_every_setting_says_what_it_is() -> None:
    assert [line for line in generate.settings_page() if line.endswith("|  |") and "CONVENER_" in line] == []
