import pytest

from app.kernel.refused_writes import WriteTrouble, trouble_of


@pytest.mark.parametrize(
    ("sqlstate", "words", "trouble"),
    [
        ("53100", "no room, in whatever language", WriteTrouble.FULL),
        ("XX000", 'could not write to file "base/1": Disk quota exceeded', WriteTrouble.FULL),
        ("58030", 'could not write to file "base/1": No space left on device', WriteTrouble.FULL),
        ("42501", 'could not open file "base/1": Read-only file system', WriteTrouble.READ_ONLY),
        ("58030", 'could not read block 1 in file "base/1": Input/output error', WriteTrouble.SHORT),
        ("53300", "sorry, too many clients already", None),
    ],
)
def test_a_refused_write_is_told_by_state_and_by_words_of_the_system(
    sqlstate: str, words: str, trouble: WriteTrouble | None
) -> None:
    assert trouble_of(sqlstate, words) is trouble


@pytest.mark.parametrize("sqlstate", ["22P02", "22P05", "23505", "P0001"])
@pytest.mark.parametrize("value", ["No space left on device", "Disk quota exceeded", "Read-only file system"])
def test_words_of_a_caller_are_no_full_disk(sqlstate: str, value: str) -> None:
    assert trouble_of(sqlstate, f"duplicate key\nDETAIL:  Key (name)=({value}) already exists.") is None
