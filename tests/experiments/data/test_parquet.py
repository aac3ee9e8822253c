"""Damaged parquet and arrow files: the library reads what it is told to, so the tables are validated."""

import pytest

from experiments.config.overrides import UsageError
from experiments.data import parquet

pa = pytest.importorskip("pyarrow")


@pytest.fixture
def arrow(tmp_path):
    """The bytes of a stream with one column of texts, and a path."""
    sink = pa.BufferOutputStream()
    table = pa.table({"question": ["first", "second", "third"]})
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes(), tmp_path / "x.arrow"


def test_rows_without_data_are_refused(tmp_path):
    sink, path = pa.BufferOutputStream(), tmp_path / "x.arrow"
    table = pa.table({"question": pa.nulls(2**20)})
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    path.write_bytes(sink.getvalue().to_pybytes())
    with pytest.raises(UsageError, match=r"x\.arrow: not readable \(1048576 rows without data\)$"):
        parquet.read_arrow(path)


def test_a_sound_stream_is_read(arrow):
    data, path = arrow
    path.write_bytes(data)
    assert [line.record["question"] for line in parquet.read_arrow(path)] == ["first", "second", "third"]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ((5).to_bytes(4, "little") + (11).to_bytes(4, "little"), (2**31 - 1).to_bytes(4, "little") * 2),
        ((5).to_bytes(4, "little") + (11).to_bytes(4, "little"), (2**32 - 1).to_bytes(4, "little") * 2),
        (b"firstsecond", b"firstsec\xe5nd"),
    ],
)
def test_offsets_and_texts_that_are_not_sound_are_one_line(arrow, old, new):
    data, path = arrow
    assert data.count(old) == 1
    path.write_bytes(data.replace(old, new))
    with pytest.raises(UsageError, match=r"x\.arrow: not readable") as error:
        parquet.read_arrow(path)
    assert str(error.value).isprintable()


def test_what_parquet_says_of_a_damaged_file_is_printable(tmp_path):
    import pyarrow.parquet

    path = tmp_path / "x.parquet"
    pyarrow.parquet.write_table(pa.table({"question": ["first", "second", "third"]}), path)
    data, messages = path.read_bytes(), []
    for place in range(len(data) - 200, len(data) - 8):
        path.write_bytes(data[:place] + b"\x0e\x0f" + data[place + 2 :])
        try:
            parquet.read_parquet(path)
        except UsageError as error:
            messages.append(str(error))
    assert len(messages) > 50
    assert [text for text in messages if str(path) not in text or not text.isprintable()] == []
