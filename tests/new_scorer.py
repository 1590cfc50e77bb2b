"""The command line with a newer scorer, in an environment without model libraries.

python -m tests.new_scorer +sweep=NAME ...
"""

import sys
from importlib.machinery import PathFinder

HIDDEN = {"torch", "transformers", "vllm", "llmcompressor", "compressed_tensors"}


class WithoutModels(PathFinder):
    """Finds what is installed, but for model libraries."""

    @classmethod
    def find_spec(cls, fullname, path=None, target=None):  # type: ignore[no-untyped-def]
        return None if fullname.partition(".")[0] in HIDDEN else super().find_spec(fullname, path, target)


if __name__ == "__main__":
    sys.meta_path[:] = [WithoutModels if finder is PathFinder else finder for finder in sys.meta_path]
    from pipeline.__main__ import main
    from stages.evaluate import score

    score.VERSION += 1
    sys.exit(main())
