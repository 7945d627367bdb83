"""data.manifest: written and read back whole, any damage seen, and a fingerprint of what matters only."""

import dataclasses
import json
from pathlib import Path

import pytest
import xxhash

from data.manifest import (
    CleaningCounts,
    CleaningRules,
    FileEntry,
    Manifest,
    ShardEntry,
    checksum,
    checksum_faults,
    file_entry,
)
from data.vocabulary import Vocabulary
from launch.errors import DataError

VOCABULARY = Vocabulary(100, 2, 3, 4, 0, 1, (0, 1, 2, 3, 4), "ab" * 32)
ENTRY = ShardEntry(
    name="00000", sequences=3, documents=2, tokens=40, longest=20, bin_bytes=80, bin_xxh3="0" * 16, idx_bytes=94,
    idx_xxh3="1" * 16, source="a.txt", start=0, end=99,
)  # fmt: skip
MANIFEST = Manifest(
    dtype="uint16", vocabulary=VOCABULARY, tokenizers_version="0.22", rules=CleaningRules(512, 12, 0.3),
    cleaning=CleaningCounts(5, 1, 1, 2, 2, 1), files={"counts.npy": FileEntry(928, "2" * 16)},
    shards=(ENTRY, dataclasses.replace(ENTRY, name="00001", bin_xxh3="3" * 16, sequences=4, tokens=50)),
)  # fmt: skip


def rewrite(folder: Path, **changes: object) -> None:
    """Change top-level fields, and make the checksum right again, as a later version's writer would."""
    body = {**json.loads((folder / "manifest.json").read_text()), **changes}
    body.pop("checksum")
    body["checksum"] = xxhash.xxh3_64_hexdigest(json.dumps(body, sort_keys=True).encode())
    (folder / "manifest.json").write_text(json.dumps(body))


def test_round_trip(tmp_path: Path) -> None:
    MANIFEST.write(tmp_path)
    assert Manifest.read(tmp_path) == MANIFEST
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]


def test_what_the_file_says(tmp_path: Path) -> None:
    MANIFEST.write(tmp_path)
    body = json.loads((tmp_path / "manifest.json").read_text())
    assert body["format_version"] == 1
    assert body["totals"] == {"sequences": 7, "tokens": 90}
    assert body["rules"] == {"max_length": 512, "min_length": 12, "max_unknown": 0.3}
    assert body["vocabulary"]["special_ids"] == [0, 1, 2, 3, 4]
    assert body["shards"][1]["name"] == "00001"


def test_every_damaged_byte_is_seen(tmp_path: Path) -> None:
    """But for white space that another white space replaces: then nothing of what it says has changed."""
    MANIFEST.write(tmp_path)
    path = tmp_path / "manifest.json"
    content, seen = path.read_bytes(), 0
    for i in range(len(content)):
        path.write_bytes(content[:i] + bytes([content[i] ^ (0x01, 0x2A, 0x04, 0x80)[i % 4]]) + content[i + 1 :])
        try:
            assert Manifest.read(tmp_path) == MANIFEST
            assert chr(content[i]).isspace()
        except DataError:
            seen += 1
    assert seen > 0.8 * len(content)


@pytest.mark.parametrize("share", [0, 0.3, 0.9])
def test_truncation_is_seen(tmp_path: Path, share: float) -> None:
    MANIFEST.write(tmp_path)
    path = tmp_path / "manifest.json"
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(DataError, match=r"manifest\.json: can't be read"):
        Manifest.read(tmp_path)


@pytest.mark.parametrize("content", [b"[]", b"7", b"null", b"{}", b'"x"', b"\xff\xfe", b'{"checksum": 1}'])
def test_other_json_is_no_manifest(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(DataError, match=r"manifest\.json: can't be read"):
        Manifest.read(tmp_path)


def test_no_manifest(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no manifest\.json: not a dataset .*python -m data\.binarize"):
        Manifest.read(tmp_path)
    (tmp_path / "manifest.json").mkdir()
    with pytest.raises(DataError, match="can't be read"):
        Manifest.read(tmp_path)


def test_another_format_version_is_named(tmp_path: Path) -> None:
    MANIFEST.write(tmp_path)
    rewrite(tmp_path, format_version=2)
    with pytest.raises(DataError, match="format version 2; this code reads 1"):
        Manifest.read(tmp_path)


@pytest.mark.parametrize(("change", "message"), [
    ({"rules": {"max_length": 512, "least_length": 3}}, "least_length"),
    ({"vocabulary": {}}, "special_ids"),
    ({"shards": [[]]}, "mapping"),
    ({"files": []}, "items"),
])  # fmt: skip
def test_unknown_fields_are_named(tmp_path: Path, change: dict, message: str) -> None:
    MANIFEST.write(tmp_path)
    rewrite(tmp_path, **change)
    with pytest.raises(DataError, match=rf"manifest\.json: not the fields that this code knows: .*{message}"):
        Manifest.read(tmp_path)


def test_an_edited_number_is_seen(tmp_path: Path) -> None:
    MANIFEST.write(tmp_path)
    path = tmp_path / "manifest.json"
    path.write_text(path.read_text().replace('"sequences": 4', '"sequences": 5'))
    with pytest.raises(DataError, match="damaged or edited"):
        Manifest.read(tmp_path)


def test_the_checksum_is_of_the_content_not_of_its_form(tmp_path: Path) -> None:
    MANIFEST.write(tmp_path)
    path = tmp_path / "manifest.json"
    body = json.loads(path.read_text())
    path.write_text(json.dumps(dict(reversed(body.items())), indent=7))
    assert Manifest.read(tmp_path) == MANIFEST


def test_the_fingerprint_changes_with_any_sequence_and_the_meaning_of_ids() -> None:
    first, second = MANIFEST.shards
    changed = [
        dataclasses.replace(MANIFEST, dtype="int32"),
        dataclasses.replace(MANIFEST, vocabulary=dataclasses.replace(VOCABULARY, tokenizer_hash="cd" * 32)),
        dataclasses.replace(MANIFEST, shards=(second, first)),
        dataclasses.replace(MANIFEST, shards=(first,)),
        dataclasses.replace(MANIFEST, shards=(first, dataclasses.replace(second, sequences=5))),
        dataclasses.replace(MANIFEST, shards=(first, dataclasses.replace(second, bin_xxh3="4" * 16))),
        dataclasses.replace(MANIFEST, shards=(first, dataclasses.replace(second, idx_xxh3="4" * 16))),
    ]
    assert len({MANIFEST.fingerprint(), *(manifest.fingerprint() for manifest in changed)}) == len(changed) + 1


def test_the_fingerprint_does_not_change_with_anything_else() -> None:
    shards = tuple(dataclasses.replace(shard, name=f"x{shard.name}", source="b", start=3) for shard in MANIFEST.shards)
    other = dataclasses.replace(
        MANIFEST, tokenizers_version="9", rules=CleaningRules(), cleaning=CleaningCounts(), files={}, shards=shards
    )
    assert other.fingerprint() == MANIFEST.fingerprint()


def test_places_of_shards_and_all_checksums(tmp_path: Path) -> None:
    elsewhere = dataclasses.replace(ENTRY, name="../there/00001")
    manifest = dataclasses.replace(MANIFEST, shards=(ENTRY, elsewhere))
    assert [shard.folder for shard in manifest.shards] == [".", "../there"]
    right = xxhash.xxh3_64_hexdigest(b"x")
    assert manifest.checksums == {
        "counts.npy": "2" * 16, "00000.bin": "0" * 16, "00000.idx": "1" * 16,
        "../there/00001.bin": "0" * 16, "../there/00001.idx": "1" * 16,
    }  # fmt: skip
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "x").write_bytes(b"x")
    (tmp_path / "here").mkdir()
    faults = checksum_faults(tmp_path / "here", {"../there/x": right, "../there/./x": "0", "y": right})
    place = tmp_path / "here"
    assert faults == [
        f"{place}/../there/x: checksum {right}, expected 0", f"{place}/y: checksum missing, expected {right}",
    ]  # fmt: skip


def test_cleaning_counts_add_up_field_by_field() -> None:
    assert CleaningCounts(1, 2, 3, 4, 5, 6) + CleaningCounts(10, 20, 30, 40, 50, 60) == CleaningCounts(
        lines=11, lines_with_invalid_utf8=22, lines_split=33, pieces_of_split_lines=44, dropped_too_short=55,
        dropped_unknown=66,
    )  # fmt: skip


def test_checksum_of_a_file_read_in_pieces(tmp_path: Path) -> None:
    content = bytes(range(256)) * 20_000  # 5 MB: more than one piece
    (tmp_path / "x").write_bytes(content)
    assert checksum(tmp_path / "x") == xxhash.xxh3_64_hexdigest(content)
    assert file_entry(tmp_path / "x") == FileEntry(len(content), xxhash.xxh3_64_hexdigest(content))
    (tmp_path / "x").write_bytes(b"")
    assert checksum(tmp_path / "x") == "2d06800538d394c2"  # XXH3 of nothing, as its specification lists it
