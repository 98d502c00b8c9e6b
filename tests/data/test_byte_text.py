"""Text to tokens and back, whole and as it comes."""

from hypothesis import given, settings
from hypothesis import strategies as st

from reformer_lab.data.byte_text import ByteDecoder, decode, encode


@settings(max_examples=50)
@given(st.text())
def test_there_and_back(text: str) -> None:
    tokens = encode(text)
    assert tokens == [byte + 2 for byte in text.encode()]
    assert decode(tokens) == text


@settings(max_examples=50)
@given(st.lists(st.integers(0, 300)))
def test_any_tokens_become_text(tokens: list[int]) -> None:
    """What comes piece by piece is what the whole gives: wrong bytes as Python replaces them, other tokens as one sign."""
    decoder = ByteDecoder()
    expected, run = "", b""
    for token in tokens:
        if 2 <= token < 258:
            run += bytes([token - 2])
        else:
            expected += run.decode("utf-8", "replace") + "\ufffd"
            run = b""
    found = "".join([decoder.feed(token) for token in tokens])
    assert found + decoder.end() == expected + run.decode("utf-8", "replace") == decode(tokens)


def test_a_character_appears_whole() -> None:
    decoder = ByteDecoder()
    assert [decoder.feed(token) for token in encode("aé€😀b")] == ["a", "", "é", "", "", "€", "", "", "", "😀", "b"]
    assert decoder.feed(encode("é")[0]) == ""
    assert decoder.end() == "\ufffd"
    assert decoder.end() == ""


def test_bytes_of_a_command_line_stay_bytes() -> None:
    assert encode(b"caf\xe9".decode("utf-8", "surrogateescape")) == [byte + 2 for byte in b"caf\xe9"]
