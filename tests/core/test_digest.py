import hashlib

from tierwise import yaml_text
from tierwise.core.digest import digest, same


def test_no_digest_looks_like_a_number():
    # Without the letter, a few of so many do (sixteen decimals, or one e among them).
    contents = [f"{n}".encode() for n in range(20_000)]
    assert any(yaml_text.ambiguous(hashlib.sha256(content).hexdigest()[:16]) for content in contents)
    assert not any(yaml_text.ambiguous(digest(content)) for content in contents)


def test_a_digest_kept_by_an_earlier_version_is_the_same():
    made = digest(b"content")
    assert same(made, made)
    assert same(hashlib.sha256(b"content").hexdigest()[:16], made)
    assert not same(digest(b"other"), made)
    assert not same(None, made)
    assert not same("", made)
