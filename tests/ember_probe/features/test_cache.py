import builtins
import errno
import os
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import spacy
import torch

from spacy_llmner.ember_probe.features import cache as cache_module
from spacy_llmner.ember_probe.features import words
from spacy_llmner.ember_probe.features.cache import FeatureCache, doc_key
from spacy_llmner.ember_probe.features.words import WordReader
from spacy_llmner.llm.registry import make_llm
from tests.ember_probe.helpers import (
    TEXTS,
    TRAIN,
    assert_same,
    make_examples,
    make_nlp,
    make_sgd,
    train,
)


@pytest.fixture
def llm(tiny_llm):
    return make_llm(tiny_llm, device="cpu").load()


@pytest.fixture
def docs(trained):
    return [trained.make_doc(text) for text in TEXTS]


@pytest.fixture
def reads(monkeypatch):
    """The texts that the LLM reads during the test."""
    texts = []
    original = words.read_texts

    def read_texts(llm, ids, *args):
        texts.extend(ids)
        return original(llm, ids, *args)

    monkeypatch.setattr(words, "read_texts", read_texts)
    return texts


READER = WordReader((1, 3))
DEV = [("Oskar Blum saw Varnholm.", [(0, 10, "PER"), (15, 23, "LOC")]), ("Cold tea.", [])]
WITH_ATTENTION = WordReader((2,), "both", max_words=3)


def assert_features(got, expected):
    for a, b in zip(got, expected):
        assert torch.allclose(a.hidden.float(), b.hidden, rtol=1e-3, atol=1e-3)
        assert (a.attention is None) == (b.attention is None)
        if b.attention is not None:
            assert torch.allclose(a.attention.float(), b.attention, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("reader", [READER, WITH_ATTENTION])
def test_features_come_back(llm, docs, tmp_path, reads, reader):
    expected = reader.read(llm, docs)
    reads.clear()
    cache = FeatureCache(tmp_path, llm, reader)
    first = cache.read(llm, reader, docs)
    assert len(reads) == len(docs)
    again = cache.read(llm, reader, docs[::-1])[::-1]
    # Another instance, as in another process.
    other = FeatureCache(tmp_path, llm, reader).read(llm, reader, docs)
    assert len(reads) == len(docs)
    for features in (first, again, other):
        assert_features(features, expected)
        for a, b in zip(features, first):
            assert torch.equal(a.hidden, b.hidden)  # rounded whether cached or not


def test_llm_reads_each_document_once(tiny_llm, tmp_path, reads):
    cfg = {"feature_cache": str(tmp_path)}
    nlp = train(make_nlp(tiny_llm, width=16, cfg=cfg), steps=5)
    assert len(reads) == len(TEXTS)
    list(nlp.pipe(TEXTS))
    assert len(reads) == len(TEXTS)
    # A second run on the same corpus reads nothing at all.
    train(make_nlp(tiny_llm, width=32, cfg=cfg), steps=2)
    assert len(reads) == len(TEXTS)


@pytest.mark.parametrize("how", ["loaded", "sourced"])
def test_training_that_goes_on_reads_each_document_once(tiny_llm, tmp_path, reads, how):
    nlp = train(make_nlp(tiny_llm, width=16), steps=1)  # caches nothing
    nlp.to_disk(tmp_path / "pipeline")
    config = {"components.ember_probe.feature_cache": str(tmp_path / "features")}
    more = spacy.load(tmp_path / "pipeline", config=config)
    if how == "sourced":
        loaded, more = more, spacy.blank("en")
        more.add_pipe("ember_probe", source=loaded)
    reads.clear()
    more(TEXTS[0])
    assert len(reads) == 1 and not (tmp_path / "features").exists()
    reads.clear()
    sgd = more.resume_training()
    for _ in range(4):
        more.update(make_examples(more), sgd=sgd)
        more.evaluate(make_examples(more, DEV))
    assert len(reads) == len(TEXTS) + len(DEV)


def test_nothing_is_cached_after_scoring(tiny_llm, tmp_path, reads):
    nlp = train(make_nlp(tiny_llm, width=16, cfg={"feature_cache": str(tmp_path)}), steps=2)
    nlp.evaluate(make_examples(nlp, DEV))
    cached = set(nlp.get_pipe("ember_probe").cache.index)
    assert len(cached) == len(TEXTS) + len(DEV)
    for _ in range(2):
        nlp("A text that is in no corpus.")
        nlp.evaluate(make_examples(nlp, [("Nor is this one.", [])]))
    assert set(nlp.get_pipe("ember_probe").cache.index) == cached
    # If training continues, the dev corpus is still cached.
    reads.clear()
    nlp.update(make_examples(nlp), sgd=make_sgd())
    nlp.evaluate(make_examples(nlp, DEV))
    assert not reads


def test_cached_and_not_cached_answer_alike(tiny_llm, tmp_path):
    nlp = train(make_nlp(tiny_llm, width=16, cfg={"feature_cache": str(tmp_path / "features")}))
    nlp.to_disk(tmp_path / "pipeline")
    loaded = spacy.load(tmp_path / "pipeline")
    for text in TEXTS:
        assert_same(nlp(text), loaded(text), tolerance=5e-3)


def test_auto_is_in_the_home(tiny_llm, tmp_path, monkeypatch):
    monkeypatch.setenv("SPACY_LLMNER_HOME", str(tmp_path))
    train(make_nlp(tiny_llm, width=16, cfg={"feature_cache": "auto"}), steps=1)
    assert len(list((tmp_path / "features").glob("*/*.bin"))) == 1


def test_same_text_twice_in_a_batch(llm, docs, tmp_path, reads):
    cache = FeatureCache(tmp_path, llm, READER)
    features = cache.read(llm, READER, [docs[0], docs[1], docs[0]])
    assert len(reads) == 2
    assert torch.equal(features[0].hidden, features[2].hidden)


def test_empty_doc(llm, trained, tmp_path):
    cache = FeatureCache(tmp_path, llm, READER)
    features = cache.read(llm, READER, [trained.make_doc("")])
    assert features[0].hidden.shape == (0, 2, llm.width)


def test_key_is_text_and_words(trained):
    from spacy.tokens import Doc

    a = Doc(trained.vocab, words=["ab", "c"], spaces=[False, False])
    b = Doc(trained.vocab, words=["a", "bc"], spaces=[False, False])
    c = Doc(trained.vocab, words=["ab", "c"], spaces=[False, False])
    assert doc_key(a) != doc_key(b)
    assert doc_key(a) == doc_key(c)


def test_other_settings_have_another_folder(llm, tmp_path, other_llm):
    readers = [
        READER,
        WordReader((1, 2)),
        WordReader((1, 3), read_twice=True),
        WITH_ATTENTION,
        WordReader((2,), "next", max_words=3),
        WordReader((2,), "both", max_words=4),
        WordReader((1, 3), max_length=64),
    ]
    folders = {FeatureCache(tmp_path, llm, reader).folder for reader in readers}
    other = make_llm(other_llm, device="cpu").load()
    folders.add(FeatureCache(tmp_path, other, READER).folder)
    assert len(folders) == len(readers) + 1
    # How many tokens go through at once changes nothing.
    smaller = WordReader((1, 3), max_batch_tokens=10)
    assert FeatureCache(tmp_path, llm, smaller).folder in folders


def test_half_written_entries_are_ignored(llm, docs, tmp_path, reads):
    cache = FeatureCache(tmp_path, llm, READER)
    cache.read(llm, READER, docs)
    lines = next(cache.folder.glob("*.jsonl"))
    data = lines.with_suffix(".bin")
    full = lines.read_text()
    # A writer killed in the middle of a line ...
    lines.write_text(full[:-10])
    reads.clear()
    features = FeatureCache(tmp_path, llm, READER).read(llm, READER, docs)
    assert len(reads) == 1
    assert_features(features, READER.read(llm, docs))
    # ... and data that never reached the disk, though the line did.
    lines.write_text(full)
    data.write_bytes(data.read_bytes()[:-2])
    assert len(FeatureCache(tmp_path, llm, READER).index) == len(docs)
    for path in cache.folder.glob("*"):
        if path.suffix in (".jsonl", ".bin") and path.stem != lines.stem:
            path.unlink()
    assert len(FeatureCache(tmp_path, llm, READER).index) == len(docs) - 1
    data.unlink()
    assert not FeatureCache(tmp_path, llm, READER).index


def test_bad_bytes_are_ignored(llm, docs, tmp_path):
    cache = FeatureCache(tmp_path, llm, READER)
    cache.read(llm, READER, docs)
    lines = next(cache.folder.glob("*.jsonl"))
    lines.write_bytes(lines.read_bytes() + b'\xff\xfe\n["key", "?", [[1]]]\n[1, 2]\n')
    assert FeatureCache(tmp_path, llm, READER).index == cache.index


def test_folder_emptied_while_training(tiny_llm, tmp_path, reads):
    """If someone empties it to free space, the LLM reads the corpus again, once."""
    nlp = train(make_nlp(tiny_llm, cfg={"feature_cache": str(tmp_path)}), steps=0)
    shutil.rmtree(next(tmp_path.iterdir()))
    examples = make_examples(nlp, TRAIN)
    for expected in (len(TRAIN), 0):
        reads.clear()
        nlp.update(examples, sgd=make_sgd())
        assert len(reads) == expected


def test_two_writers_do_not_meet(llm, docs, tmp_path):
    one, two = FeatureCache(tmp_path, llm, READER), FeatureCache(tmp_path, llm, READER)
    one.read(llm, READER, docs[:3])
    two.read(llm, READER, docs[2:])
    assert len(list(one.folder.glob("*.bin"))) == 2
    merged = FeatureCache(tmp_path, llm, READER)
    assert merged.index.keys() == {doc_key(doc) for doc in docs}
    assert_features(merged.read(llm, READER, docs), READER.read(llm, docs))


def test_forked_process_writes_a_file_of_its_own(llm, docs, tmp_path):
    cache = FeatureCache(tmp_path, llm, READER)
    cache.read(llm, READER, docs[:1])
    features = READER.read(llm, docs[1:2])[0]
    half = cache_module._half(features)
    child = os.fork()
    if child == 0:
        try:
            cache.put(doc_key(docs[1]), half)
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert len(list(cache.folder.glob("*.bin"))) == 2
    assert len(FeatureCache(tmp_path, llm, READER).index) == 2


def test_folder_that_cannot_be_made(tiny_llm, tmp_path, reads):
    (tmp_path / "file").write_text("in the way")
    nlp = make_nlp(tiny_llm, width=16, cfg={"feature_cache": str(tmp_path / "file")})
    with pytest.warns(UserWarning, match="can't be written.*every epoch"):
        train(nlp, steps=3)
    assert len(reads) == 4 * len(TEXTS)
    assert nlp(TEXTS[0]).text == TEXTS[0]


def test_full_disk(llm, docs, tmp_path, monkeypatch, reads):
    """There is one warning. Cached features are kept and used, and training goes on."""
    cache = FeatureCache(tmp_path, llm, READER)
    cache.read(llm, READER, docs[:2])

    class FullDisk:
        def __init__(self, file):
            self.file, self.name = file, file.name

        def tell(self):
            return self.file.tell()

        def write(self, data):
            self.file.write(data[:10])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    cache.data_file = FullDisk(cache.data_file)
    reads.clear()
    with pytest.warns(UserWarning, match="No space left.*are kept and used") as caught:
        features = cache.read(llm, READER, docs)
    assert len(caught) == 1
    assert len(reads) == len(docs) - 2
    assert_features(features, READER.read(llm, docs))
    reads.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cache.read(llm, READER, docs)
    assert len(reads) == len(docs) - 2
    cache.data_file.file.flush()
    monkeypatch.undo()
    later = FeatureCache(tmp_path, llm, READER)
    assert later.index.keys() == {doc_key(doc) for doc in docs[:2]}
    assert_features(later.read(llm, READER, docs), READER.read(llm, docs))


def test_read_only_folder(llm, docs, tmp_path, monkeypatch, reads):
    FeatureCache(tmp_path, llm, READER).read(llm, READER, docs[:2])
    # Not with chmod, which doesn't apply to root.
    original = Path.open

    def only_read(self, mode="r", *args, **kwargs):
        if tmp_path in self.parents and set(mode) & set("wa"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return original(self, mode, *args, **kwargs)

    monkeypatch.setattr(Path, "open", only_read)
    monkeypatch.setattr(builtins, "open", builtins.open)
    reads.clear()
    cache = FeatureCache(tmp_path, llm, READER)
    with pytest.warns(UserWarning, match="Permission denied"):
        features = cache.read(llm, READER, docs)
    assert len(reads) == len(docs) - 2
    assert len(features) == len(docs)


def test_huge_states_stay_finite(llm, docs, tmp_path):
    cache = FeatureCache(tmp_path, llm, READER)
    features = READER.read(llm, docs[:1])[0]
    features.hidden[0, 0, 0] = 1e9
    cache.put("key", cache_module._half(features))
    assert np.isfinite(cache.get("key").hidden.float().numpy()).all()
