"""While large libraries are imported nobody looks for garbage, and afterwards whoever did before."""

import gc

import pytest

from stages.imports import no_collection


@pytest.mark.parametrize("enabled", [True, False])
def test_collection_is_as_it_was_also_after_an_import_that_fails(enabled: bool) -> None:
    before = gc.isenabled()
    (gc.enable if enabled else gc.disable)()
    try:
        with pytest.raises(ModuleNotFoundError), no_collection():
            assert not gc.isenabled()
            import no_such_module  # type: ignore[import-not-found]  # noqa: F401
        assert gc.isenabled() is enabled
    finally:
        (gc.enable if before else gc.disable)()
