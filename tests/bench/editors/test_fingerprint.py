"""A local folder of weights is named by the content of its files."""

import os
import shutil

import pytest

from topi.bench.editors import fingerprint
from topi.bench.editors.fingerprint import folder_fingerprint

FILES = {
    "model_index.json": b'{"_class_name": "FluxKontextPipeline"}',
    "transformer/config.json": b'{"num_layers": 2}',
    "transformer/model-00001-of-00002.safetensors": b"weights of one half",
    "transformer/model-00002-of-00002.safetensors": b"weights of the other",
    "text_encoder/pytorch_model.bin": b"pickled",
    "scheduler/scheduler_config.json": b'{"shift": 3}',
    "pytorch_lora_weights.safetensors": b"lora",
    "tokenizer/merges.txt": b"a b",
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name, content in FILES.items():
        (tmp_path / "A" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "A" / name).write_bytes(content)
    return tmp_path / "A"


@pytest.mark.parametrize("name", FILES)
def test_every_file_counts_at_equal_size_and_times(folder, name):
    other = shutil.copytree(folder, folder.with_name("B"))
    assert folder_fingerprint(other) == folder_fingerprint(folder)
    times = os.stat(other / name)
    (other / name).write_bytes(FILES[name][:-1] + b"~")
    os.utime(other / name, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert folder_fingerprint(other) != folder_fingerprint(folder)


def test_a_name_counts_and_documents_do_not(folder):
    before = folder_fingerprint(folder)
    (folder / "README.md").write_text("a fine-tune")
    (folder / ".cache").mkdir()
    (folder / ".cache" / "lock").write_text("")
    assert folder_fingerprint(folder) == before
    (folder / "text_encoder" / "pytorch_model.bin").rename(folder / "text_encoder" / "model.bin")
    assert folder_fingerprint(folder) != before


def test_components_behind_links_count(folder):
    before = folder_fingerprint(folder)
    (folder / "transformer").rename(folder.with_name("elsewhere"))
    (folder / "transformer").symlink_to(folder.with_name("elsewhere"))
    assert folder_fingerprint(folder) == before
    (folder / "transformer" / "loop").symlink_to(folder)  # ends
    assert folder_fingerprint(folder) == before


def test_a_large_file_is_read_once_until_it_is_touched(folder, monkeypatch):
    read = []
    stock = fingerprint.file_hash
    monkeypatch.setattr(fingerprint, "file_hash", lambda file: read.append(file) or stock(file))
    monkeypatch.setattr(fingerprint, "LARGE", 1)
    first = folder_fingerprint(folder)
    assert len(read) == len(FILES)
    assert folder_fingerprint(folder) == first and len(read) == len(FILES)

    changed = folder / "pytorch_lora_weights.safetensors"
    times = changed.stat()
    changed.write_bytes(b"LORA")
    os.utime(changed, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert folder_fingerprint(folder) != first and len(read) == len(FILES) + 1

    for kept in fingerprint.hash_folder().iterdir():  # what is damaged is computed
        kept.write_text("damaged")
    changed.write_bytes(b"lora")
    assert folder_fingerprint(folder) == first


def test_hashes_that_cannot_be_kept_are_computed(folder, monkeypatch):
    before = folder_fingerprint(folder)
    monkeypatch.setattr(fingerprint, "LARGE", 1)
    fingerprint.hash_folder().parent.parent.mkdir(parents=True, exist_ok=True)
    fingerprint.hash_folder().parent.write_text("a file where the folder should be")
    assert folder_fingerprint(folder) == before
