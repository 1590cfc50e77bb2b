"""A directory is told from another by its names and bytes alone."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.errors import DataError
from stages.local_files import digest_tree

FILES = st.dictionaries(st.text("abc", min_size=1, max_size=4), st.binary(max_size=20), min_size=1, max_size=4)


@given(FILES, FILES)
def test_digest_depends_on_names_and_bytes_alone(tmp_path_factory, first, second):
    digests = []
    for files in (first, dict(reversed(first.items())), second):
        folder = tmp_path_factory.mktemp("tree")
        for name, content in files.items():
            (folder / name).write_bytes(content)
        digests.append(digest_tree(folder))
    assert digests[0] == digests[1]
    assert (digests[0] == digests[2]) == (first == second)


def test_digest_of_nothing_is_refused(tmp_path):
    with pytest.raises(DataError, match="not a directory with files"):
        digest_tree(tmp_path / "missing")
