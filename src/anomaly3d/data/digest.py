"""Whether the data of a result are still the data: one hash of clouds, truths and labels."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from anomaly3d.data.index import CloudRecord
from anomaly3d.errors import InputError


def data_digest(records: Iterable[CloudRecord]) -> str:
    """SHA-256 of every record's name, label and files; the same wherever the data set lies, and in any order.

    Raises:
        InputError: a file can't be read.
    """
    whole = hashlib.sha256()
    for record in sorted(records, key=lambda record: record.sample_id):
        whole.update(repr((record.sample_id, record.label, record.source)).encode())
        for path in (record.path, record.mask_path):
            if path is None:
                continue
            try:
                with path.open("rb") as file:
                    whole.update(hashlib.file_digest(file, "sha256").digest())
            except OSError as error:
                raise InputError(f"{path}: can't be read ({error.strerror}).") from error
    return whole.hexdigest()
