"""Folders are complete or absent, replace nothing but what the project wrote, and take what several writers bring."""

import os
import threading
import time

import pytest

from lib import files, folders
from lib.folders import folder_names, manifest, renames, targets


@pytest.fixture(params=["exchanged", "renamed twice"])
def way(request, monkeypatch):
    """With the system's exchange, and as on disks that have none."""
    if request.param == "renamed twice":
        monkeypatch.setattr(renames, "_renameat2", lambda: None)
    return request.param


def write(path, text="new", name="w", **options):
    with folders.replace(path, **options) as unfinished:
        (unfinished / name).parent.mkdir(exist_ok=True)
        (unfinished / name).write_text(text)
    return path


def tree(folder):
    """Everything below a folder: its kind, and the content of files."""
    kinds = {True: lambda path: os.readlink(path), False: lambda path: path.read_bytes() if path.is_file() else None}
    return {str(path.relative_to(folder)): kinds[path.is_symlink()](path) for path in sorted(folder.rglob("*"))}


def test_a_folder_appears_when_complete(tmp_path):
    target = tmp_path / "model"
    with folders.replace(target) as unfinished:
        (unfinished / "part").mkdir()
        (unfinished / "empty").mkdir()
        (unfinished / "part" / "w").write_text("1")
        (unfinished / "part" / "w").chmod(0o600)  # as safetensors writes its files
        assert not target.exists()
    (tmp_path / "created").touch()
    assert (target / "part" / "w").stat().st_mode == (tmp_path / "created").stat().st_mode
    (tmp_path / "created").unlink()
    assert set(tree(target)) == {"part", "part/w", "manifest.json"} and list(tmp_path.iterdir()) == [target]
    assert manifest.ours(target) == {"part/w": files.sha256(target / "part" / "w")}


@pytest.mark.parametrize("again", [False, True])
def test_a_folder_within_a_folder_is_written_by_the_same_thread(tmp_path, way, again):
    def both():
        with folders.replace(tmp_path / "outer", mark="outer") as unfinished:
            write(unfinished / "inner", "1", mark="inner")
            write(unfinished / "inner", "2", mark="inner")
            with folders.locked(unfinished, shared=True), pytest.raises(OSError, match="unavailable"):
                folders.locked(unfinished, wait=False).__enter__()

    for _ in range(1 + again):
        thread = threading.Thread(target=both, daemon=True)
        thread.start()
        thread.join(60)
        assert not thread.is_alive(), "it waits for itself"
    assert (tmp_path / "outer" / "inner" / "w").read_text() == "2" and manifest.ours(tmp_path / "outer" / "inner")
    assert not manifest.foreign(tmp_path / "outer") and len(list(tmp_path.iterdir())) == 1


def test_a_lock_is_taken_more_tightly_and_given_back_as_it_was(tmp_path):
    with folders.locked(tmp_path, shared=True):
        with folders.locked(tmp_path), folders.locked(tmp_path), folders.locked(tmp_path, shared=True):
            pass
        with pytest.raises(OSError, match="unavailable"), folders.locked(tmp_path, wait=False):
            pass
        with folders.locked(tmp_path, shared=True, wait=False):  # others read meanwhile
            pass
    with folders.locked(tmp_path, wait=False):
        pass


def test_a_folder_that_fails_leaves_the_old_one(tmp_path, way):
    target = write(tmp_path / "model", "old")
    with pytest.raises(KeyError), folders.replace(target) as unfinished:
        (unfinished / "w").write_text("new")
        raise KeyError
    assert (target / "w").read_text() == "old" and list(tmp_path.iterdir()) == [target]
    write(target)
    assert (target / "w").read_text() == "new" and list(tmp_path.iterdir()) == [target]


ADDED = {
    "notes.txt": lambda it: (it / "notes.txt").write_text("mine"),
    ".git/": lambda it: (it / ".git" / "objects").mkdir(parents=True),
    ".hidden": lambda it: (it / ".hidden").touch(),
    "empty/": lambda it: (it / "empty").mkdir(),
    "link": lambda it: (it / "link").symlink_to(it),
    "w": lambda it: ((it / "w").rename(it.parent / "far"), (it / "w").symlink_to(it.parent / "far")),
    r"w \(changed since it was written\)": lambda it: (it / "w").write_text("mine"),
    "pipe": lambda it: os.mkfifo(it / "pipe"),
    r"\.thimble-unfinished": lambda it: (it / manifest.UNFINISHED).write_text("mine"),
    r"\.thimble-unfinished/": lambda it: (it / manifest.UNFINISHED).mkdir(),
    "part/note": lambda it: (it / "part" / "note").touch(),
}


@pytest.mark.parametrize("named", ADDED)
def test_what_a_user_put_into_a_folder_of_ours_is_named_and_stays(tmp_path, named):
    target = tmp_path / "model"
    with folders.replace(target) as unfinished:
        (unfinished / "w").write_text("1")
        (unfinished / "part").mkdir()
        (unfinished / "part" / "v").write_text("2")
    ADDED[named](target)
    before = {name: found for name, found in tree(tmp_path).items() if name != "model/pipe"}
    for ask in (targets.check, write):
        with pytest.raises(FileExistsError, match=rf"holds more than the project wrote there: {named}; .* move those"):
            ask(target)
    assert {name: found for name, found in tree(tmp_path).items() if name != "model/pipe"} == before


@pytest.mark.parametrize(
    "name", ["a\0b", "cut \ud83d", "byte \udcff", "n" * 242, "ü" * 121, "/".join(["d" * 200] * 20)]
)
def test_a_path_that_cannot_be_is_refused_before_the_work(tmp_path, name):
    target = os.path.join(tmp_path, name)
    for ask in (targets.check, write, files.check_writable):
        with pytest.raises(
            ValueError, match=r"the path .* (holds a NUL or half a character|is too long: .* a shorter)"
        ):
            ask(target)
    assert not [*tmp_path.iterdir()]


def test_the_longest_name_that_is_allowed_can_be_written(tmp_path):
    target = write(tmp_path / ("n" * 241))
    write(target)
    files.write_text(tmp_path / ("f" * 241), "text")
    assert set(tree(target)) == {"w", "manifest.json"}


OTHERS = {
    "siblings": lambda it: ((it / "other").mkdir(), (it / "thesis.tex").write_text("x")),
    "a manifest of another program": lambda it: (it / "manifest.json").write_text('{"files": ["a"], "name": "page"}'),
    "a manifest without a writer": lambda it: ((it / "w").write_text("x"), manifest.write(it)),
    "a manifest that is none": lambda it: (it / "manifest.json").write_bytes(b"\xff{"),
    "a folder named manifest.json": lambda it: (it / "manifest.json").mkdir(),
    "short hashes": lambda it: (it / "manifest.json").write_text('{"kind": "plain", "files": {"w": "abc"}}'),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_a_folder_of_somebody_else_is_refused_by_what_is_in_it(tmp_path, kind):
    target = tmp_path / "my models"
    target.mkdir()
    OTHERS[kind](target)
    before = tree(tmp_path)
    with pytest.raises(FileExistsError, match=rf"did not write; it holds {min(p.name for p in target.iterdir())}"):
        write(target)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("origin", [{"kind": "plain"}, {"kind": "pack-quantized"}, {"wheel": "x", "gguf_sha256": "y"}])
def test_folders_of_earlier_versions_are_ours(tmp_path, origin):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    manifest.write(tmp_path / "model", **origin)
    write(tmp_path / "model")
    assert set(tree(tmp_path / "model")) == {"w", "manifest.json"}


def test_fewer_files_than_were_written_and_empty_folders_are_replaced(tmp_path, way):
    target = write(tmp_path / "model")
    (target / "w").unlink()
    write(target, "again")
    (tmp_path / "empty").mkdir(mode=0o750)
    write(tmp_path / "empty")
    assert (target / "w").read_text() == "again" and (tmp_path / "empty" / "w").read_text() == "new"
    assert (tmp_path / "empty").stat().st_mode & 0o777 == 0o750
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "model"]


def test_files_are_no_folders(tmp_path):
    (tmp_path / "model").write_text("thesis")
    before = tree(tmp_path)
    with pytest.raises(FileExistsError, match="model is a file; a folder is to be written there; choose another name"):
        write(tmp_path / "model")
    for path in (tmp_path / "model" / "it", tmp_path / "model" / "deep" / "it"):
        with pytest.raises(PermissionError, match=r"model is a file; choose a folder elsewhere"):
            write(path)
    assert tree(tmp_path) == before


def test_a_file_that_earlier_versions_put_aside_is_in_nobodys_way(tmp_path, way):
    (tmp_path / ".model.old").write_text("a file that a save had replaced")
    write(write(tmp_path / "model"), "again")
    folders.recover(tmp_path / "model")
    assert (tmp_path / ".model.old").read_text().startswith("a file") and len(list(tmp_path.iterdir())) == 2


def test_a_link_stays_and_its_folder_is_replaced(tmp_path, way):
    (tmp_path / "disk").mkdir()
    (tmp_path / "model").symlink_to("disk")
    for text in ("first", "second"):
        write(tmp_path / "model", text)
        assert (tmp_path / "model").is_symlink() and (tmp_path / "disk" / "w").read_text() == text
    (tmp_path / "next").symlink_to(tmp_path / "disk" / "not yet")
    with pytest.raises(FileExistsError, match="there: nothing more"):
        write(tmp_path / "disk" / "nothing more"), write(tmp_path / "disk")
    assert write(tmp_path / "next").is_symlink() and (tmp_path / "disk" / "not yet" / "w").exists()


@pytest.mark.parametrize("end", ["/not/mounted/model", "loop"])
def test_a_link_to_nowhere_is_refused(tmp_path, end):
    (tmp_path / "loop").symlink_to(end)
    for path in (tmp_path / "loop", tmp_path / "loop" / "below"):
        with pytest.raises(FileNotFoundError, match=rf"loop is a link to {end}, which is not there"):
            write(path)
    assert [path.name for path in tmp_path.iterdir()] == ["loop"]


def test_mount_points_are_refused_before_the_work(tmp_path, monkeypatch):
    (tmp_path / "my disk").mkdir()
    listed = tmp_path / "mountinfo"
    listed.write_text(
        f"36 35 98:0 /x {str(tmp_path).replace(' ', chr(92) + '040')}/my\\040disk rw shared:1 - ext4 /d rw\n"
    )
    monkeypatch.setattr(targets, "_MOUNTS", listed)
    with pytest.raises(OSError, match=r"my disk is a mount point .*; give a folder in it"):
        targets.check(tmp_path / "my disk")
    targets.check(tmp_path / "my disk" / "model")
    with pytest.raises(OSError, match="/proc is a mount point"):
        targets.check("/proc")


def test_a_place_that_turns_out_immovable_costs_no_work(tmp_path, monkeypatch):
    target = write(tmp_path / "model", "old")

    def busy(*_):
        raise OSError(16, "Device or resource busy")

    monkeypatch.setattr(renames, "exchange", busy)
    with pytest.raises(OSError, match=r"resource busy What was to be written is whole in .*model-2\."):
        write(target)
    assert (target / "w").read_text() == "old" and (tmp_path / "model-2" / "w").read_text() == "new"
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("came", ["file", "folder", "more"])
def test_what_comes_to_lie_there_meanwhile_stays_and_so_does_the_work(tmp_path, way, came):
    target = tmp_path / "model"
    if came == "more":
        write(target, "old")
    with pytest.raises(FileExistsError, match=r"(notes|is a file).*What was to be written is whole in .*model-2\."):  # noqa: SIM117
        with folders.replace(target) as unfinished:
            (unfinished / "w").write_text("new")
            if came == "file":
                target.write_text("mine")
            else:
                target.mkdir(exist_ok=True)
                (target / "notes").write_text("mine")
    assert (target if came == "file" else target / "notes").read_text() == "mine"
    assert (tmp_path / "model-2" / "w").read_text() == "new" and len(list(tmp_path.iterdir())) == 2


def test_what_comes_between_the_look_and_the_exchange_stays(tmp_path, way, monkeypatch):
    target = write(tmp_path / "model", "old")
    look = targets.refuse

    def slow(path, place, kept):
        look(path, place, kept)
        if any(".tmp" in path.name for path in tmp_path.iterdir()):
            (target / "notes").write_text("mine")

    monkeypatch.setattr(folders, "refuse", slow)
    with pytest.raises(FileExistsError, match="notes"):
        write(target)
    assert (target / "notes").read_text() == "mine" and (target / "w").read_text() == "old"
    assert (tmp_path / "model-2" / "w").read_text() == "new" and len(list(tmp_path.iterdir())) == 2


def test_places_that_hold_others_are_never_replaced(tmp_path, monkeypatch):
    monkeypatch.setenv("THIMBLE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "user").mkdir()
    (tmp_path / "work").mkdir()
    for path in ("/", "~", "~/", files.home(), files.checkpoints(), files.cache(), files.results(), files.ROOT):
        with pytest.raises(OSError, match=r"holds others .*; it is never replaced; give a folder in it"):
            write(path)
    monkeypatch.chdir(tmp_path / "work")
    for path in (".", "./", "../work", "x/..", tmp_path / "work"):
        with pytest.raises(OSError, match=r"is the folder you work in .*; give a folder in it"):
            write(path)
    for path in ("", " "):
        with pytest.raises(ValueError, match=f"the path '{path}' is empty; it must name a folder; give its name"):
            write(path)
    for path in ("~/model", "x/", "./y", "../work/z", "a/../b"):
        write(path)
    assert (tmp_path / "user" / "model" / "w").exists()
    assert sorted(path.name for path in (tmp_path / "work").iterdir()) == ["b", "x", "y", "z"]


def test_what_cannot_be_written_is_refused(tmp_path, monkeypatch):
    with pytest.raises(PermissionError, match=r"cannot be written .*; choose a folder that you own"):
        targets.check("/proc/self/model")
    write(tmp_path / "model")
    monkeypatch.setattr(os, "access", lambda path, mode: str(path) != str(tmp_path / "model"))
    with pytest.raises(PermissionError, match=r"model is another user's .*; choose a folder that you own"):
        targets.check(tmp_path / "model")


def test_the_disk_that_is_asked_is_that_of_the_rename(tmp_path, monkeypatch):
    asked = []
    usage = type(files.shutil.disk_usage(tmp_path))(10**9, 10**9, 5 * 10**6)
    monkeypatch.setattr(files.shutil, "disk_usage", lambda path: (asked.append(path), usage)[1])
    (tmp_path / "far" / "disk").mkdir(parents=True)
    (tmp_path / "model").symlink_to(tmp_path / "far" / "disk")
    with pytest.raises(OSError, match="needs 270 MB and its disk has 5 MB free"):
        targets.check(tmp_path / "model", 270 * 10**6)
    assert asked == [tmp_path / "far"]


@pytest.mark.parametrize("finished", [False, True])
@pytest.mark.parametrize("name", [".model.old", ".model.0123abcd.old"])
def test_a_kill_between_the_two_renames_is_mended(tmp_path, finished, name):
    target, old = tmp_path / "model", tmp_path / name
    write(target, "old").rename(old)
    if finished:
        write(tmp_path / "other").rename(target)
    folders.recover(target)
    assert (target / "w").read_text() == ("new" if finished else "old") and not old.exists()


@pytest.mark.parametrize("mark", [None, "a word of the user's"])
@pytest.mark.parametrize("name", [".model.old", ".model.0123abcd.old", ".model.0123abcd.tmp", ".model.backup.tmp"])
def test_hidden_folders_of_somebody_else_stay(tmp_path, name, mark):
    (tmp_path / name).mkdir()
    if mark:
        (tmp_path / name / manifest.UNFINISHED).write_text(mark)
    (tmp_path / name / "thesis").write_text("x")
    os.utime(tmp_path / name, (0, 0))
    folders.recover(tmp_path / "model")
    assert not (tmp_path / "model").exists()
    write(write(tmp_path / "model"), "again")
    folders.recover(tmp_path / "model")
    assert (tmp_path / name / "thesis").exists() and (tmp_path / "model" / "w").read_text() == "again"


def test_an_old_folder_with_something_of_the_users_is_put_back_but_not_deleted(tmp_path):
    target, old = write(tmp_path / "model", "old"), tmp_path / ".model.old"
    (target / "notes").write_text("mine")
    target.rename(old)
    folders.recover(target)
    assert (target / "notes").exists()
    target.rename(old)
    with pytest.raises(FileExistsError, match="notes"):
        write(target)
    assert (target / "notes").exists()
    target.rename(old)
    write(tmp_path / "other").rename(target)
    folders.recover(target)
    assert (old / "notes").exists() and (target / "w").read_text() == "new"


def test_leftovers_of_killed_writers_go_and_what_is_being_written_stays(tmp_path):
    paths = {name: tmp_path / f".{name[:2]}.{number:08x}.tmp" for number, name in enumerate(LEFT)}
    for name, path in paths.items():
        path.mkdir()
        LEFT[name](path)
        os.utime(path, (time.time() - 2 * folders.GRACE,) * 2)
    os.utime(paths["it young"])
    with folders.locked(paths["it running"]):
        write(tmp_path / "it")
    assert [name for name, path in paths.items() if path.exists()] == ["it running", "it young", "other"]


def marked(path):
    (path / manifest.UNFINISHED).touch()
    (path / "model.safetensors").write_text("half")


LEFT = {
    "it killed": marked,
    "it just made": lambda path: None,
    "it complete": lambda path: ((path / "w").touch(), manifest.write(path, written_by=manifest.WRITER)),
    "it running": marked,
    "it young": marked,
    "other": marked,
}


def test_kinds_of_folders_without_a_manifest(tmp_path, way):
    target = write(tmp_path / "built", name="lib.so", kept=("lib.so", "log"))
    assert set(tree(target)) == {"lib.so"}
    (target / "lib.so").write_text("damaged")
    write(target, "again", name="lib.so", kept=("lib.so", "log"))
    assert (target / "lib.so").read_text() == "again"
    (target / "notes").touch()
    with pytest.raises(FileExistsError, match=r"did not write; it holds lib\.so, notes"):
        write(target, name="lib.so", kept=("lib.so", "log"))


def test_threads_that_write_one_place_all_succeed(tmp_path, way):
    failed = []

    def work(text):
        try:
            for _ in range(10):
                write(tmp_path / "model", text)
        except OSError as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(str(number),)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed and list(tmp_path.iterdir()) == [tmp_path / "model"]


@pytest.mark.parametrize("broken", [False, True])
def test_a_reader_reads_again_what_was_replaced_meanwhile(tmp_path, way, broken):
    target, seen = write(tmp_path / "model", "old"), []

    def read():
        seen.append((target / "w").read_text())
        if len(seen) == 1:
            write(target)
            if broken:
                raise FileNotFoundError("a file that was there")
        return seen[-1], (target / "w").read_text()

    assert folders.unchanged(target, read) == ("new", "new") and seen == ["old", "new"]


def test_what_is_broken_stays_broken(tmp_path):
    seen = []
    for place in (write(tmp_path / "model"), tmp_path / "absent"):
        with pytest.raises(ValueError, match="damaged"):
            folders.unchanged(place, lambda: (_ for _ in ()).throw(ValueError(f"damaged {seen.append(1)}")))
    assert len(seen) == 3  # what is absent may be on its way


def test_an_exchange_that_the_system_lacks_changes_nothing(tmp_path, monkeypatch):
    one, other = write(tmp_path / "one", "1"), write(tmp_path / "other", "2")
    monkeypatch.setattr(renames, "_renameat2", lambda: lambda *_: renames.ctypes.set_errno(22) or -1)
    assert not renames.exchange(one, other) and (one / "w").read_text() == "1"
    monkeypatch.undo()
    with pytest.raises(FileNotFoundError):
        renames.exchange(one, tmp_path / "absent")


@pytest.fixture
def places(tmp_path, monkeypatch):
    """A bare name in checkpoints/, in the working folder and in the repository, and below the user's folder."""
    monkeypatch.setenv("THIMBLE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    found = [tmp_path / name for name in ("home/checkpoints/x", "here/x", "home/x", "user/x")]
    for path in found:
        path.mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    return found


def test_a_path_is_a_path_and_a_name_is_looked_up(places, tmp_path, capsys):
    checkpoint, here, home, user = places
    for name in ("./x", "x/", str(here), here, "../here/x", type(here)("x"), "../here/../here/x/"):
        assert folder_names.find(name) == here and not capsys.readouterr().out
    assert folder_names.find("~/x") == user and folder_names.find("checkpoints/x") == checkpoint
    for name in ("./checkpoints/x", "../x", "home/x", "", "no", "a\0b", "n" * 300):
        assert folder_names.find(name) is None
    capsys.readouterr()
    assert folder_names.find("x") == checkpoint
    assert capsys.readouterr().out == f"x: checkpoints/x is taken; {here} and x is there too, which its path chooses\n"
    here.rmdir(), home.rmdir()
    assert folder_names.find("x") == checkpoint and not capsys.readouterr().out
    assert folder_names.find("./x") is None
    checkpoint.rmdir()
    assert folder_names.find("x") is None
    (tmp_path / "here" / "checkpoints").symlink_to(tmp_path / "home" / "checkpoints")
    checkpoint.mkdir()
    assert folder_names.find("checkpoints/x").samefile(checkpoint) and not capsys.readouterr().out
