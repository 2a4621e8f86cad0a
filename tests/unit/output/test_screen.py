"""screen: what is said on stderr and on the terminal."""

from llmfilter.output.screen import Screen


def test_last_words_are_one_write() -> None:
    written: list[bytes] = []
    screen = Screen(written.append, None, is_shown=True, may_have_bar=False, place=2)
    screen.say_last("stopped", "how far")
    assert written == [b"llmfilter: stopped\nllmfilter: how far\n"]
