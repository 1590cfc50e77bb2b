"""Where data sets come from: the hub at a revision, or the mirror, digested."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from pipeline.config.schema import DataConfig
from pipeline.errors import UserError
from stages.errors import DataError
from stages.fetch import DatasetSource
from stages.local_files import digest_tree


class Sources:
    """Data sets by hub id, each digested once."""

    def __init__(self, data: DataConfig) -> None:
        self._mirror = Path(data.mirror).resolve() if data.mirror else None
        self._known: dict[str, DatasetSource] = {}

    @property
    def is_mirrored(self) -> bool:
        """Whether there is a mirror, which then has everything or lacks it."""
        return self._mirror is not None

    def get(self, repo_id: str, revision: str | None) -> DatasetSource:
        """The data set's source, with its digest if the mirror has it.  Raises UserError for a second revision."""
        if repo_id not in self._known:
            self._known[repo_id] = self._look_up(repo_id, revision)
        known = self._known[repo_id]
        if None not in (known.revision, revision) and known.revision != revision:
            raise UserError(
                f"data set {repo_id} is named at two revisions, {known.revision} and {revision}: a sweep reads one, so "
                "name the same in every task and text"
            )
        return known

    def _look_up(self, repo_id: str, revision: str | None) -> DatasetSource:
        """One that the mirror lacks has no digest: to fetch it is a step that fails, and stops only what needs it."""
        if self._mirror is None:
            return DatasetSource(repo_id=repo_id, revision=revision)
        path = self._mirror / repo_id
        try:
            digest = digest_tree(path)
        except DataError:
            digest = None
        return DatasetSource(repo_id=repo_id, mirror_path=str(path), digest=digest)

    def check_some_at_hand(self, tasks: Iterable[Sequence[DatasetSource]]) -> None:
        """Raise UserError for a mirror with which no task can be evaluated: it is the wrong one."""
        missing = {name for name, source in self._known.items() if self.is_mirrored and source.digest is None}
        if missing and all(missing & {source.repo_id for source in task} for task in tasks):
            names = ", ".join(sorted(missing))
            raise UserError(
                f"the mirror {self._mirror} lacks the data set {names}: put each at {self._mirror}/<id> in the hub's "
                "layout, or drop the tasks that read it"
            )
