"""Models that the tests share: tiny random ones of every supported shape, and one real small LLM."""

import json
import os
import shutil
import string

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Processes that the tests start have tiny models, too.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from hypothesis import settings
from safetensors.torch import load_file, save_file
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import (
    BertConfig,
    BertModel,
    BertTokenizerFast,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from spacy_llmner.el4ner_ensemble.voter import session
from spacy_llmner.llm.registry import make_llm
from spacy_llmner.models import catalogue
from tests.pipelines import PIPELINES

# Tiny models gain nothing from more threads, and lose much on a busy machine.
torch.set_num_threads(1)
# The machine may be busy, so no test fails because it took too long.
settings.register_profile("llmner", deadline=None)
settings.load_profile("llmner")

SENTENCES = [
    "Ada Hale met Bo Lund in Bonn on Monday, and they spoke about the old bridge.",
    "The river Aare flows past Bern. Nobody came to the meeting in Rome.",
    "  Two spaces,\ttabs\nand lines.  Ünder Straßen läuft Öl.",
    "王小明在北京大学学习。他住在上海。",
    "Rockets 🚀 and parties 🎉 for Zoë 👩‍💻!",
    "Prices rose by 3.5% to 120 euros, said Dr. Hale of Lund & Sons.",
]
SPECIAL = ["<|im_start|>", "<|im_end|>"]
# Like SmolLM2, the tiny Llama has no token for some bytes and leaves them out.
NO_BYTES = (0x04, 0xF1, 0xF2, 0xF3, 0xF4)
# The text window that Gemma's sliding layers see is smaller than the texts of the tests.
SLIDING_WINDOW = 5
SIZE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
SHAPES = ("llama", "qwen2", "gemma3", "gpt2")
CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="session")
def smollm2():
    """Folder of the small LLM that the project itself downloads."""
    return catalogue.download("smollm2-135m-instruct", progress=False)


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory):
    """Folders of tiny random LLMs, by shape. Don't write to them."""
    root = tmp_path_factory.mktemp("tiny-llms")
    return {shape: save_tiny(root / shape, shape) for shape in SHAPES}


@pytest.fixture(scope="session")
def tiny_llm(tiny_models):
    """Folder of a tiny random Llama with a byte-level tokenizer."""
    return tiny_models["llama"]


@pytest.fixture(scope="session")
def roomy_llm(tiny_models, tmp_path_factory):
    """The tiny Llama with 1024 positions, for conversations and examples."""
    folder = tmp_path_factory.mktemp("llm") / "roomy"
    shutil.copytree(tiny_models["llama"], folder)
    change_json(folder / "config.json", max_position_embeddings=1024)
    return str(folder)


@pytest.fixture(scope="session")
def short_lists():
    """Limit the lists that an ensemble's LLMs write: random LLMs fill them."""
    usual, session.MAX_LIST_TOKENS = session.MAX_LIST_TOKENS, 16
    yield
    session.MAX_LIST_TOKENS = usual


@pytest.fixture(scope="session")
def roomy(tmp_path_factory, short_lists):
    """Folders of three tiny LLMs with 4096 positions; the second one has a chat template."""
    root = tmp_path_factory.mktemp("voters")
    shapes = {"one": ("llama", 7), "two": ("qwen2", 8), "three": ("llama", 3)}
    for name, (shape, seed) in shapes.items():
        save_tiny(root / name, shape, seed)
        change_json(root / name / "config.json", max_position_embeddings=4096)
    change_json(root / "two" / "tokenizer_config.json", chat_template=CHAT)
    return [str(root / name) for name in shapes]


@pytest.fixture(scope="session")
def llm_of(tiny_models, roomy_llm, roomy):
    """Get the LLM for the tests of a component. RETURNS (Callable): Takes the name of a component, and
    returns a folder, or three folders for el4ner_ensemble."""
    return {
        "ember_probe": tiny_models["llama"],
        "padellm_ner": tiny_models["llama"],
        "ra_it_ner": roomy_llm,
        "el4ner_ensemble": roomy,
    }.__getitem__


@pytest.fixture(scope="session")
def pipelines(llm_of, tmp_path_factory):
    """Get a small pipeline: pipelines("padellm_ner", "wild"). Each is trained once, at its first use.
    Tests must not change it."""
    made = {}

    def get(component, kind="trained"):
        if (component, kind) not in made:
            build = PIPELINES[component][kind]
            made[component, kind] = build(llm_of(component), tmp_path_factory.mktemp(component))
        return made[component, kind]

    return get


@pytest.fixture(scope="session")
def other_llm(tiny_llm, tmp_path_factory):
    """Folder of an LLM with the shape of tiny_llm and other weights."""
    folder = tmp_path_factory.mktemp("llm") / "other"
    shutil.copytree(tiny_llm, folder)
    state = load_file(folder / "model.safetensors")
    state = {name: tensor.flip(0).contiguous() for name, tensor in state.items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    return str(folder)


@pytest.fixture(scope="session", params=SHAPES)
def any_llm(request, tiny_models):
    """Folder of a tiny random LLM of each supported shape."""
    return tiny_models[request.param]


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory):
    """Folder of a tiny random BERT that reads 24 tokens. Don't write to it."""
    return save_bert(tmp_path_factory.mktemp("bert") / "tiny")


@pytest.fixture(scope="session")
def other_bert(tmp_path_factory):
    """Folder of a BERT with the shape of tiny_bert and other weights."""
    return save_bert(tmp_path_factory.mktemp("bert") / "other", seed=1)


@pytest.fixture(scope="session")
def run():
    """Runs a command of spaCy: run("evaluate", folder, corpus). RETURNS (str): What it printed."""
    import spacy.cli
    from spacy.cli._util import app
    from typer.testing import CliRunner

    assert spacy.cli  # it registers the commands

    def run(*args, code=0):
        result = CliRunner().invoke(app, [str(arg) for arg in args], catch_exceptions=code != 0)
        assert result.exit_code == code, result.output
        return result.output

    return run


@pytest.fixture
def load():
    """Load a folder in float32 on the CPU."""
    return lambda path, dtype="float32": make_llm(str(path), dtype=dtype, device="cpu").load()


@pytest.fixture(scope="session")
def make_tiny():
    """Write a tiny random LLM to a folder: make_tiny(path, shape, seed=0, **size)."""
    return save_tiny


@pytest.fixture(scope="session")
def tiny_tokenizers():
    """Fast tokenizers of transformers, by kind."""
    return {
        "byte-level": byte_level_tokenizer(),
        "metaspace": metaspace_tokenizer(),
        "metaspace with a space in front": metaspace_tokenizer("first"),
    }


def change_json(path, **values):
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def save_tiny(path, shape, seed=0, **size):
    """Write a tiny random LLM and its tokenizer."""
    tokenizer = metaspace_tokenizer() if shape == "gemma3" else byte_level_tokenizer()
    tokenizer.save_pretrained(path)
    tiny_model(shape, len(tokenizer), seed, **size).save_pretrained(path)
    return str(path)


def tiny_model(shape, vocab_size, seed=0, head_dim=12, scale=0.3, **size):
    size = {**SIZE, **size}
    ids = {"vocab_size": vocab_size, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    if shape == "llama":
        model = LlamaForCausalLM(LlamaConfig(**size, **ids))
    elif shape == "qwen2":
        model = Qwen2ForCausalLM(Qwen2Config(**size, **ids))
    elif shape == "gemma3":
        kinds = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]
        config = Gemma3TextConfig(
            **size,
            **ids,
            head_dim=head_dim,
            query_pre_attn_scalar=8,
            layer_types=kinds,
            sliding_window=SLIDING_WINDOW,
        )
        model = Gemma3ForCausalLM(config)
    else:
        config = GPT2Config(
            n_embd=size["hidden_size"],
            n_inner=size["intermediate_size"],
            n_layer=size["num_hidden_layers"],
            n_head=size["num_attention_heads"],
            n_positions=size["max_position_embeddings"],
            **ids,
        )
        model = GPT2LMHeadModel(config)
    # Initial weights are so small that all attention is uniform, and biases are 0.
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.1 * noise if "norm" in name or "ln_" in name else scale * noise)
    model.generation_config.pad_token_id = 1
    return model


def byte_level_tokenizer():
    """A tokenizer like those of SmolLM2, Qwen2 and GPT-2."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=SPECIAL,
        initial_alphabet=[c for c in pre_tokenizers.ByteLevel.alphabet() if c not in no_token()],
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return fast(tokenizer)


def no_token():
    """The letters that stand for NO_BYTES in a byte-level alphabet."""
    # Bytes 0 to 32 are shown as the letters from U+0100 on, 0xAE to 0xFF as themselves.
    return [chr(0x100 + byte) if byte < 33 else chr(byte) for byte in NO_BYTES]


def metaspace_tokenizer(prepend="never"):
    """A tokenizer like Gemma's; with prepend "first" it is like Llama 2's."""
    space = pre_tokenizers.Metaspace(prepend_scheme=prepend)
    trained = Tokenizer(models.BPE(unk_token="<unk>"))
    trained.pre_tokenizer = space
    raw_bytes = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=560,
        special_tokens=[*SPECIAL, "<unk>", *raw_bytes],
        limit_alphabet=70,
        show_progress=False,
    )
    trained.train_from_iterator(SENTENCES, trainer)
    model = models.BPE(
        *vocab_and_merges(trained), unk_token="<unk>", byte_fallback=True, fuse_unk=True
    )
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = space
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        + ([decoders.Strip(" ", 1, 0)] if prepend == "first" else [])
    )
    tokenizer.add_special_tokens([*SPECIAL, "<unk>"])
    return fast(tokenizer)


def vocab_and_merges(tokenizer):
    model = json.loads(tokenizer.to_str())["model"]
    return model["vocab"], [tuple(merge) for merge in model["merges"]]


def fast(tokenizer):
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=SPECIAL[0],
        eos_token=SPECIAL[1],
        pad_token=SPECIAL[1],
        clean_up_tokenization_spaces=False,
    )


def save_bert(path, seed=0):
    """Write a tiny random sentence encoder."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    # The tokenizer isn't trained: a trainer chooses at random among pieces that are equally frequent.
    words = {word for text in SENTENCES for word in text.lower().split()}
    parts = {word[k : k + n] for word in words for k in range(len(word)) for n in (1, 2)}
    parts.update(string.ascii_lowercase)
    pieces = sorted(words | parts | {f"##{part}" for part in parts})
    vocab = {piece: k for k, piece in enumerate([*special, *pieces])}
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    fast = BertTokenizerFast(tokenizer_object=tokenizer, model_max_length=24)
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
