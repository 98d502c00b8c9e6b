"""Strategies that damage what was valid: bytes anywhere in a file, values anywhere in a JSON document."""

import copy
import json
from typing import Any

from hypothesis import strategies as st

NASTY = (
    "", "\x00", "../../outside", "/dev/zero", "<script>alert(1)</script>", "\ud800", "a\nb", "-1", "nan", "[x](javascript:0)",
    "\x1b]0;x\x07",
)  # fmt: skip
VALUES: st.SearchStrategy[Any] = st.one_of(
    st.none(), st.booleans(), st.sampled_from([-1, 0, 1, 3, 2**31, 2**63, 10**30, -1.5, 1e308, float("inf"), float("nan")]),
    st.sampled_from(NASTY), st.just([]), st.just({}), st.just([[]]), st.just({"a": {"b": []}}), st.just([1, "a", None]),
)  # fmt: skip


@st.composite
def damaged_bytes(draw: st.DrawFn, content: bytes) -> bytes:
    """The content with one to three pieces cut, overwritten, inserted or repeated; most of all where headers are."""
    result = bytearray(content)
    for _ in range(draw(st.integers(1, 3))):
        near = min(len(result), 200)
        at = draw(st.one_of(st.integers(0, len(result)), st.integers(0, near), st.integers(len(result) - near, len(result))))
        how = draw(st.sampled_from(["cut", "overwrite", "overwrite", "insert", "remove", "repeat"]))
        if how == "cut":
            del result[at:]
        elif how == "overwrite":
            piece = draw(st.one_of(st.binary(min_size=1, max_size=4), st.sampled_from([b"\xff" * 8, b"\0" * 8])))
            result[at : at + len(piece)] = piece
        elif how == "insert":
            result[at:at] = draw(st.binary(min_size=1, max_size=20))
        elif how == "remove":
            del result[at : at + draw(st.integers(1, 30))]
        else:
            result[at:at] = result[: draw(st.integers(1, 60))]
    return bytes(result)


@st.composite
def damaged_json(draw: st.DrawFn, document: Any) -> Any:
    """A copy of the document in which one or two values, at any depth, are replaced, removed or renamed."""
    result = copy.deepcopy(document)
    for _ in range(draw(st.integers(1, 2))):
        places = list(_places(result))
        if not places:
            return draw(VALUES)
        holder, key = draw(st.sampled_from(places))
        how = draw(st.sampled_from(["replace", "replace", "replace", "remove", "rename"]))
        if how == "replace":
            holder[key] = draw(VALUES)
        elif how == "remove":
            del holder[key]
        elif isinstance(holder, dict):
            holder[draw(st.sampled_from(NASTY))] = holder.pop(key)
        else:
            holder.append(holder[key])
    return result


def damaged_document(document: Any) -> st.SearchStrategy[bytes]:
    """The text of a damaged JSON document, or its damaged text, or one nested so deep that no parser follows."""
    text = json.dumps(document).encode()
    return st.one_of(damaged_json(document).map(lambda value: json.dumps(value).encode()), damaged_bytes(text),
                     st.just(b"[" * 100_000), st.just(b'{"a":' * 100_000))


def _places(value: Any) -> Any:
    """Every (container, key) of a document."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(items):
        yield value, key
        yield from _places(inner)
