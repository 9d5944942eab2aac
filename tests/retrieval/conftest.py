import pytest
import torch
from retrieval_helpers import TEXTS
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import BertConfig, BertModel, BertTokenizerFast

from spacy_llmner.llm import catalogue
from spacy_llmner.retrieval import encoder as encoders

WINDOW = 24


@pytest.fixture(scope="session")
def minilm():
    """Folder of the sentence encoder that the project itself downloads."""
    return str(catalogue.download("all-minilm-l6-v2", progress=False))


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory):
    """Folder of a tiny random BERT that reads 24 tokens. Don't write to it."""
    return save_bert(tmp_path_factory.mktemp("bert") / "tiny")


@pytest.fixture(scope="session")
def other_bert(tmp_path_factory):
    """Of the same shape, with other weights."""
    return save_bert(tmp_path_factory.mktemp("bert") / "other", seed=1)


@pytest.fixture
def no_encoders():
    """Nothing is loaded, and only what the test loads is."""
    encoders._LOADED.clear()
    return encoders._LOADED


def save_bert(path, seed=0):
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    fast = BertTokenizerFast(tokenizer_object=tokenizer, model_max_length=WINDOW)
    fast.save_pretrained(path)
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(fast),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
        initializer_range=0.5,
    )
    BertModel(config).save_pretrained(path)
    return str(path)
