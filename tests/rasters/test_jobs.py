"""The pairs that a command line names."""

from __future__ import annotations

from pathlib import Path, PurePath

import pytest

from change.common.errors import UserError
from change.rasters.jobs import find_jobs
from change.rasters.result_folder import folders_to_keep, has_result


def test_text_files_of_pairs(tmp_path: Path) -> None:
    """Tabs or commas separate, also with the byte order mark that spreadsheets write."""
    (tmp_path / "pairs.csv").write_text("a.tif,b.tif,one\n\nc.tif,d.tif,\n", encoding="utf-8-sig")
    (tmp_path / "pairs.txt").write_text("a, b.tif\tc.tif\td e\n")
    found = {(j.before.name, j.after.name, j.folder.name) for j in find_jobs(tmp_path / "pairs.csv", None, tmp_path)}
    assert found == {("a.tif", "b.tif", "one"), ("c.tif", "d.tif", "c")}
    (job,) = find_jobs(tmp_path / "pairs.txt", None, tmp_path)
    assert (job.before.name, job.folder.name) == ("a, b.tif", "d e")
    for line in ("a.tif\tb.tif\t..\n", "a\0.tif\tb.tif\n", ".tif\tb.tif\t\n"):
        (tmp_path / "pairs.txt").write_text(line)
        with pytest.raises(UserError, match=r"line 1: .* cannot be the name of a folder"):
            find_jobs(tmp_path / "pairs.txt", None, tmp_path)


def test_many_pairs_take_linear_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of paths compared and resolved grows with the number of pairs, not with its square."""
    count = 20_000
    (tmp_path / "pairs.txt").write_text("".join(f"a/{i}.tif\tb/{i}.tif\tpair{i}\n" for i in range(count)))
    done = {"compared": 0, "resolved": 0}
    equal, resolve = PurePath.__eq__, Path.resolve

    def counted_equal(self: PurePath, other: object) -> bool:
        done["compared"] += 1
        assert done["compared"] < 20 * count
        return equal(self, other)

    def counted_resolve(self: Path, strict: bool = False) -> Path:
        done["resolved"] += 1
        return resolve(self, strict)

    with monkeypatch.context() as counting:
        counting.setattr(PurePath, "__eq__", counted_equal)
        counting.setattr(Path, "resolve", counted_resolve)
        jobs = find_jobs(tmp_path / "pairs.txt", None, tmp_path / "out")
        some = jobs[::10]
        kept = folders_to_keep(job.before for job in some)
        results = [has_result(job.folder, kept, overwrite=False) for job in some]
    assert len(jobs) == count and not any(results)
    assert done["resolved"] == len(some) and done["compared"] > 0


def test_folders_to_keep(tmp_path: Path) -> None:
    """A folder is kept if a path lies in it, at any depth, or if it is one of the paths."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    paths = [tmp_path / "a" / "b" / "1.tif", tmp_path / "a" / "2.tif", tmp_path / "link" / "3.tif"]
    kept = folders_to_keep(paths)
    assert kept[tmp_path] == kept[tmp_path / "a"] == kept[tmp_path / "a" / "b"] == paths[0]
    assert kept[tmp_path / "a" / "2.tif"] == paths[1] and kept[tmp_path / "real"] == paths[2]
    assert tmp_path / "link" not in kept and tmp_path / "a" / "c" not in kept
    with pytest.raises(UserError, match=r"-o .*real holds .*3.tif: choose a folder of its own"):
        has_result(tmp_path / "real", kept, overwrite=True)


def test_two_pairs_of_one_name(tmp_path: Path) -> None:
    (tmp_path / "pairs.txt").write_text("a.tif\tb.tif\nc.tif\td.tif\nx/a.tif\tx/b.tif\n")
    with pytest.raises(UserError, match=r"pairs.txt names .*out/a more than once: give each pair its own name"):
        find_jobs(tmp_path / "pairs.txt", None, tmp_path / "out")


LISTS = {
    "comment": b"# May\na,1.png\tb.png\tone\n",
    "header": b"before\tafter\tname\na,1.png\tb.png\tone\n",
    "quotes": b'"a,1.png","b.png","one"\n',
    "quotes and semicolons": b'# May\r\nbefore;after;name\r\n"a,1.png"; b.png ;one\r\n',
    "semicolons": b"a,1.png;b.png;one\n",
    "semicolons, two columns": b"a,1.png;b.png\n",
    "UTF-16": "a,1.png\tb.png\tone\n".encode("utf-16"),
    "UTF-8 with mark": b"\xef\xbb\xbf# May\na,1.png\tb.png\tone\n",
}


@pytest.mark.parametrize("content", LISTS.values(), ids=LISTS)
def test_lists_as_people_write_them(tmp_path: Path, content: bytes) -> None:
    for name in ("a,1.png", "b.png"):
        (tmp_path / name).touch()
    (tmp_path / "list.csv").write_bytes(content)
    (job,) = find_jobs(tmp_path / "list.csv", None, tmp_path / "out")
    assert (job.before, job.after) == (tmp_path / "a,1.png", tmp_path / "b.png")
    assert job.folder.name in ("one", "a,1")


def test_a_first_line_without_suffixes_can_name_files(tmp_path: Path) -> None:
    (tmp_path / "before").touch()
    (tmp_path / "list.txt").write_text("before\tafter\n")
    (job,) = find_jobs(tmp_path / "list.txt", None, tmp_path)
    assert job.before == tmp_path / "before"


def test_lists_in_other_encodings(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_bytes("é.png\tb.png\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"list\.txt is not text in UTF-8: save it with that encoding"):
        find_jobs(tmp_path / "list.txt", None, tmp_path)


@pytest.mark.parametrize(
    "path", ["/vsizip/z.zip/b.tif", "zip://z.zip!b.tif", "https://host/b.tif", "s3://bucket/b.tif"]
)
def test_paths_that_are_no_files_here(tmp_path: Path, path: str) -> None:
    (tmp_path / "list.txt").write_text(f"a.tif\t{path}\n")
    for before, after in ((Path(path), Path("b.tif")), (Path("a.tif"), Path(path)), (tmp_path / "list.txt", None)):
        with pytest.raises(UserError, match="is not a file on this machine: download or unpack it"):
            find_jobs(before, after, tmp_path)
