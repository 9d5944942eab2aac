"""What the tests of all entity components share: made-up examples and comparisons."""

import numpy as np
from spacy.training import Example
from thinc.api import Adam

TRAIN = [
    ("Mira Stone met Oskar Blum in Varnholm.", [(0, 10, "PER"), (15, 25, "PER"), (29, 37, "LOC")]),
    ("Oskar Blum likes tea.", [(0, 10, "PER")]),
    ("The river near Varnholm is cold.", [(15, 23, "LOC")]),
    ("Nobody saw the red boat.", []),
    ("In Port Ellam , Mira Stone sings.", [(3, 13, "LOC"), (16, 26, "PER")]),
    ("Tea is cold in Port Ellam.", [(15, 25, "LOC")]),
]
TEXTS = [text for text, _ in TRAIN]
NASTY = [
    "\x00\x01Mira\x02 Stone\x85",
    "Mira\u200bStone \ufeff met \u202eOskar\u202c",
    "👩‍👩‍👧 Oskar Blum 🚀🚀",
    "<|im_start|>system\nMira Stone</s><s>",
    "\n\n Mira Stone \t\r\n",
    "مرحبا Varnholm שלום",
    "ﬁ e\u0301 ñ Å 〜 王小明",
    "\x04\x04 Mira \x04Stone\x04",
]


def make_examples(nlp, data=TRAIN):
    return [Example.from_dict(nlp.make_doc(text), {"entities": ents}) for text, ents in data]


def make_sgd(learn_rate=0.01, **settings):
    return Adam(learn_rate, L2=0.0, **{"use_averages": False, **settings})


def entities(doc):
    return [(ent.start_char, ent.end_char, ent.label_) for ent in doc.ents]


def scores(doc, key="llmner"):
    """RETURNS (Dict): Score by characters and label of everything found."""
    group = doc.spans[key]
    return {
        (span.start_char, span.end_char, span.label_): score
        for span, score in zip(group, group.attrs["scores"])
    }


def assert_same(one, other, tolerance=1e-4):
    """Same text, entities and scores. What is found just at the threshold may be missing."""
    assert one.text == other.text
    assert entities(one) == entities(other)
    a, b = scores(one), scores(other)
    for key in set(a) | set(b):
        assert abs(a.get(key, 0.5) - b.get(key, 0.5)) < tolerance, key


def share_found(nlp, data=TRAIN):
    """RETURNS (float): F-score, without touching the calibration as `nlp.evaluate` does."""
    right = total = 0
    for (_, gold), doc in zip(data, nlp.pipe([text for text, _ in data])):
        right += 2 * len(set(gold) & set(entities(doc)))
        total += len(gold) + len(doc.ents)
    return right / total


def assert_valid(doc, text):
    """Entities are exact, in order, apart from each other and don't start or end with a space."""
    assert doc.text == text
    reached = 0
    for ent in doc.ents:
        assert text[ent.start_char : ent.end_char] == ent.text
        assert ent.start >= reached
        reached = ent.end
    group = doc.spans["llmner"]
    assert len(group) == len(group.attrs["scores"])
    for span in [*doc.ents, *group]:
        assert not span[0].is_space and not span[-1].is_space
    assert all(0.0 <= s <= 1.0 for s in group.attrs["scores"])
    assert {(e.start, e.end, e.label) for e in doc.ents} <= {
        (s.start, s.end, s.label) for s in group
    }


def state_of(nlp, name=None):
    """RETURNS (Dict): A copy of the trained tensors of a component, by default the last one."""
    module = nlp.get_pipe(name or nlp.pipe_names[-1]).module
    return {k: v.clone() for k, v in module.state_dict().items()}


def same_state(one, other):
    return one.keys() == other.keys() and all(np.array_equal(one[k], other[k]) for k in one)


def damage(path, left):
    """Leave so many bytes of a file, all but so many if it is negative; None removes it."""
    data = path.read_bytes()
    path.unlink()
    if left is not None:
        path.write_bytes(data[:left])
