import pytest
from hypothesis import given
from hypothesis import strategies as st

from resources.errors import UserError
from resources.keys import ModelKey, check_dataset_key


@pytest.mark.parametrize(
    "text", ["smollm2-135m@2", "HuggingFaceTB/SmolLM2-135M@93efa2f", "a@1", "a.b/c_d@v1.0-rc.1"]
)
def test_legal_keys_come_back_as_they_are(text: str) -> None:
    assert str(ModelKey.parse(text)) == text


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("smollm2", "expected name@version"),
        ("a|b@1", "expected name@version"),
        ("a,b@1", "expected name@version"),
        ("a@b@1", "expected name@version"),
        ("a\n@1", "expected name@version"),
        ("a@1\n", "expected name@version"),
        ("a@", "expected name@version"),
        ("@1", "expected name@version"),
        ("é@1", "expected name@version"),
        ("a\x00@1", "expected name@version"),
        ("../a@1", r"'\.\.'"),
        ("a@..", r"'\.\.'"),
        ("a..b@1", r"'\.\.'"),
        ("/a@1", "empty"),
        ("a//b@1", "empty"),
        ("a/@1", "empty"),
        ("./a@1", "dot-only"),
        ("a" * 200 + "@1", "202 characters; at most 200"),
    ],
)
def test_an_illegal_key_is_refused_in_one_line_with_the_rule(text: str, rule: str) -> None:
    with pytest.raises(UserError, match=rule) as caught:
        ModelKey.parse(text)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 250


@given(st.text(max_size=60))
def test_whatever_is_accepted_is_safe_in_a_path_and_in_a_partition_key(text: str) -> None:
    try:
        key = ModelKey.parse(text)
    except UserError:
        return
    assert not set(str(key)) & set("|,\\ \n\0")
    assert ".." not in str(key)
    assert not str(key).startswith("/")


@pytest.mark.parametrize("text", ["", "Upper", "a|b", "a/b", "..", "a..b", "-a", "a" * 201])
def test_an_illegal_benchmark_key_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="benchmark key"):
        check_dataset_key(text, "my.yaml")
