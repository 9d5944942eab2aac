"""Every message a user may meet: what is wrong, with which value, and what mends it."""

import re
from numbers import Integral, Real
from typing import Any, Mapping, Sequence


class LLMNERError(ValueError):
    """Base class of the errors raised by spacy-llmner. They are about the set-up, which is the same for
    all documents, so no error handler of spaCy's gets them."""


class LLMNotFoundError(LLMNERError):
    """The LLM's weights are not where the config says."""


class LLMMismatchError(LLMNERError):
    """The component was trained on other weights than those it is given."""


class DocumentError(LLMNERError):
    """One document can't be read as it is: spaCy's error handler gets it."""


class WithCodes(type):
    """Shows the code of a message in front of it: "[LLMNER012] ..."."""

    def __getattribute__(cls, name: str) -> Any:
        message = super().__getattribute__(name)
        if not re.fullmatch(r"[EW]\d{3}", name):
            return message
        code = name[1:] if name.startswith("E") else f"-{name}"
        return f"[LLMNER{code}] {message}"


class Errors(metaclass=WithCodes):
    E001 = (
        "No LLM is set. Name one with `paths.llm` in the config (`--paths.llm NAME` at the command "
        "line, `spacy.load(dir, config={{'paths.llm': NAME}})` in Python) or "
        "`components.{component}.llm.name`: "
        "a local folder, a name of `spacy llmner info`, or a hub id."
    )
    E002 = "The LLM '{name}' is in the catalogue but not downloaded yet. Get it with: {command}"
    E003 = (
        "Can't find the LLM {name}: it is no folder with a config.json, no name of the catalogue "
        "({known}) and not in the local hub cache ({reason}). Correct the path, or get a small LLM with: "
        "python -m spacy llmner download {first}"
    )
    E004 = (
        "The LLM folder '{path}' is incomplete or broken ({reason}). Get the model again from where it "
        "came from; if `spacy llmner download` made the folder, delete it and run that again."
    )
    E005 = (
        "The device '{device}' is not there: {reason}. Set `device` of the LLM to 'cpu' or 'auto', "
        "or run on a machine with a GPU and a CUDA build of torch."
    )
    E006 = "'{value}' is no {what}. Possible: {known}."
    E007 = (
        "Models of the type '{model_type}' are not supported: {reason}. Name a causal LM shaped like "
        "Llama, Qwen2, Gemma3 or GPT-2."
    )
    E008 = (
        "'{name}' was trained on the LLM {trained} (fingerprint {trained_print}), but is given "
        "{given} (fingerprint {given_print}). What it learnt fits one set of weights only: point the "
        "pipeline to the right ones with spacy.load(dir, config={{'paths.llm': PATH}}), or, if its config "
        "does not use paths.llm, {{'components.{name}.llm.name': PATH}}. Or train again."
    )
    E009 = (
        "Layer {layer} was asked for, but the LLM '{name}' has {n_layers} layers "
        "(0 is the embeddings, {n_layers} the last)."
    )
    E010 = (
        "n_process > 1 can't be used with an LLM on {device}, nor with a sentence encoder there: CUDA does "
        "not survive a fork. Set `device` to 'cpu' in the blocks of both, or run one process per GPU."
    )
    E011 = (
        "The tokenizer of '{name}' is no fast tokenizer, so it reports no character offsets. "
        "Convert it to a tokenizer.json with AutoTokenizer.from_pretrained(..., use_fast=True)."
    )
    E020 = (
        "The component '{name}' has no labels. Train it (`spacy train`), or give it labelled examples "
        "with nlp.initialize(get_examples)."
    )
    E021 = (
        "The training data hold the labels {unknown}, which '{name}' does not know (it knows "
        "{known}). Add them to [initialize.components.{name}.labels], or start without that "
        "setting so that the labels are read from the data."
    )
    E022 = (
        "There are no training examples for '{name}': the corpus is empty or none of its documents "
        "has a token. Check `paths.train` (`python -m spacy init fill-config CONFIG filled.cfg`, then "
        "`python -m spacy debug data filled.cfg`)."
    )
    E023 = (
        "None of the training examples for '{name}' has an entity. Check that the corpus was "
        "converted with entities (`python -m spacy convert`, or scripts/convert.py of the repository)."
    )
    E024 = (
        "'{name}' is not trained yet: there is nothing to predict with. Run `spacy train`, or load "
        "a trained pipeline with spacy.load."
    )
    E025 = (
        "The probe of '{name}' reads finished text only (look_right or read_twice = true), so it "
        "can't be used while text is written. Train one without both for streaming."
    )
    E026 = (
        "Few-shot fit() of '{name}' takes at most {k} sentences per label and needs at least one; "
        "no example with an entity was given."
    )
    E027 = "The setting `{setting}` of '{name}' is {value!r}, but must be {must}."
    E028 = (
        "The LLM '{name}' has no chat template. Use a plain prompt (a str), or an instruction-tuned "
        "LLM such as smollm2-135m-instruct."
    )
    E029 = (
        "The text of a predicted document differs from its reference: '{predicted}' and "
        "'{reference}'. Both sides of a training example must hold the same text."
    )
    E030 = (
        "{path} does not hold a trained '{name}' ({reason}). "
        "Save the pipeline again with nlp.to_disk, or train it."
    )
    E031 = "There is no component '{name}' in the pipeline at {path}. It has: {known}."
    E032 = (
        "A few-shot ember_probe learns from fit(examples), not by training. Keep it out of the "
        "training loop with [training.frozen_components], or train spacy_llmner.EmberProbe.v1."
    )
    E033 = (
        "fit() of '{name}' needs the model spacy_llmner.EmberFewShot.v1, but it has '{model}', which "
        "is trained with `spacy train`. Set [components.{name}.model] @architectures."
    )
    E034 = (
        "The prompt of '{name}' does not fit into the LLM: {tokens} tokens for the label '{label}' "
        "leave no room for a text, since the LLM reads {max_length}. Give it a shorter name in "
        "[components.{name}.model.label_words], or use a shorter template."
    )
    E035 = (
        "The tokenizer of '{name}' names no end token (eos_token), so its answers could not end. "
        "Set eos_token in the LLM's tokenizer_config.json, or use another LLM."
    )
    E036 = (
        "The chat template of '{name}' can't write a conversation with the turns {roles} ({reason}). "
        "Use an LLM whose template can, or leave out the system turn."
    )
    E037 = (
        "'{name}' has nothing to ask for. Say which entities it shall find: labels = [...] in "
        "[components.{name}], nlp.get_pipe('{name}').set_labels(['disease', 'chemical']), or "
        "doc._.llmner_labels for one document."
    )
    E038 = (
        "'{name}' finds no spans under {missing} (there are: {there}). Put it behind the components that "
        "write them, and name their `spans_key` in its `keys`."
    )
    E039 = (
        "'{name}' was trained with {setting} = {trained!r}, but its model is given {given!r}, which does "
        "not fit what it learnt. Load it with the config it was saved with: leave out what overrides "
        "[components.{name}.model]. Or train again."
    )
    E040 = (
        "'{name}' can learn nothing of its training data: of {total} windows of text, in {unknown} tokens "
        "are not annotated or cut an entity, and the end of {cut} cuts an entity. Annotate all tokens "
        "(doc.set_ents(ents, default='outside')), name the spans to learn from in `train_spans`, use the "
        "tokenizer that the annotation fits, or raise `window`."
    )
    E041 = (
        "'{name}' can learn none of the {total} entities of the training data: they are cut by the tokens "
        "of {tokenizer}, or overlap others. Use the tokenizer that the corpus was converted with: set "
        "`nlp.lang` (`--nlp.lang`) to its language, and leave `nlp.tokenizer` out unless you need another."
    )
    E042 = (
        "The streamer can't follow the LLM: {reason}. Make one for each text: call streamer.model.generate("
        "..., streamer=streamer) inside `with nlp.get_pipe('{name}').streamer() as streamer:` and in its "
        "thread."
    )
    E043 = (
        "The LLM '{name}' computes values that are no numbers in {dtype}. Set `dtype` in its block to "
        "'bfloat16' or 'float32', and check that its weights are whole."
    )
    E044 = (
        "The loss of '{name}' is no number ({loss}), so nothing can be learnt any more. Lower the learning "
        "rate, or set `dtype` in the LLM's block to 'float32'."
    )
    E045 = (
        "'{name}' can't be calibrated: of {total} texts, {annotated} are annotated and {n} have an entity. "
        "Give calibrate() annotated texts (doc.set_ents(ents, default='outside')) that were held out from "
        "training."
    )
    E046 = (
        "'{name}' can't be calibrated: it has {n} examples and retrieval.k = {k}, so none can be shown. "
        "Add some with nlp.get_pipe('{name}').add_examples(docs), or raise `k` of "
        "[components.{name}.retrieval]."
    )
    E047 = (
        "The conversation of '{name}' about the label '{label}' takes {tokens} tokens and leaves no room "
        "for a text, since `context` is {context}, of which {answer} are for the answer. Raise it in "
        "[components.{name}], or nlp.get_pipe('{name}').cfg['context'] (the LLM reads {reads}), or give "
        "the label a shorter name in [components.{name}.model.label_words]."
    )
    E048 = (
        "The conversation of '{name}' about the label '{label}' takes {tokens} tokens and leaves no room "
        "for a text, since the LLM reads {reads}, of which {answer} are for the answer. Give the label a "
        "shorter name in [components.{name}.model.label_words], lower `max_answer_tokens` of "
        "[components.{name}], or use an LLM that reads more."
    )
    E049 = (
        "add_examples() of '{name}' takes annotated Docs, but was given a {kind}: {given}. Make a Doc with "
        "doc = nlp.make_doc(text) and doc.set_ents(ents, default='outside'); of an Example give its "
        "`reference`."
    )
    E050 = (
        "The sentence encoder '{name}' is in the catalogue but not downloaded yet. "
        "Get it with: {command}"
    )
    E051 = (
        "Can't load the sentence encoder '{name}' ({reason}). It must be a name of the catalogue, a local "
        "folder with config.json, weights and a fast tokenizer, or a hub id. Correct the name, or "
        "get a small encoder with: {command}"
    )
    E052 = (
        "The example index was made by the encoder '{trained}' (fingerprint {trained_print}), but is "
        "searched with '{given}' (fingerprint {given_print}): their vectors can't be compared. Give "
        "it the encoder it was made by, or build it again: python -m spacy llmner index CORPUS "
        "OUT {options}"
    )
    E053 = (
        "{path} holds no complete example index ({reason}). Build it again with: "
        "python -m spacy llmner index CORPUS OUT"
    )
    E054 = (
        "The setting `{setting}` of the retrieval strategy is {value!r}, but must be {must}. "
        'Correct it in the config\'s block with @misc = "spacy_llmner.Retrieval.v1".'
    )
    E055 = "Can't find the corpus '{path}'. It may be a .spacy file, a folder of them, or a .jsonl file."
    E056 = (
        "Can't read the corpus '{path}': {reason}. It may be a .spacy file, a folder of them (made "
        "with `python -m spacy convert`, or scripts/convert.py of the repository), or a .jsonl file of "
        'lines like {{"text": "Ada in Bonn", "spans": [{{"start": 7, "end": 11, "label": "LOC"}}]}}.'
    )
    E057 = (
        "The corpus '{path}' has no example: no document with text is annotated ({where}). One without "
        "entities counts if they were set, to none. Span groups are read with --spans-key KEY."
    )
    E058 = (
        "An index is made by one encoder. Give --encoder, or --llm with or without --layer, such as the "
        "component that will search it has in its block `encoder`."
    )
    E059 = (
        "Can't write the index to '{path}' ({reason}). Name a folder that can be written to, on a disk "
        "with room for it."
    )
    E060 = (
        "The voter '{voter}' of '{name}' and the voter '{other}' are the same: the same LLM with the same "
        "prompts would only vote twice. Give one of them other `prompts`, or leave it out "
        "(a higher `weight` does the same)."
    )
    E061 = (
        "The verifier '{verifier}' of '{name}' is not among its LLMs ({known}). Set `verifier` to one "
        "of them, or to null for the first."
    )
    E062 = (
        "Can't read the prompts '{path}' ({reason}). `prompts` must be one of {known}, or the path "
        "of a text file."
    )
    E063 = (
        "The {source} can't be used: {fault}. A prompt file has the sections {sections}, each headed by "
        "'# ' and its name; spacy_llmner/el4ner_ensemble/prompts has examples."
    )
    E064 = (
        "Types of the voter '{name}' can't be told apart: two of {words} are the same word. Change "
        "`label_words`, or the section '# none' of its prompts."
    )
    E065 = (
        "The answers to a check begin with the same token for the voter '{name}': {words}. Change the "
        "sections '# true' and '# false' of its prompts."
    )
    E066 = (
        "The prompts of the voter '{name}' take {tokens} tokens and leave no room for a text, since its "
        "LLM reads {max_length}. Ask for fewer or shorter types (`label_words`), or use shorter `prompts`."
    )
    E067 = (
        "The voter '{name}' of '{component}' had the LLM '{known}' (fingerprint {known_print}) when its "
        "ensemble was initialized, but is given '{given}' (fingerprint {given_print}). The demonstrations "
        "were chosen with that one: point the pipeline to it with spacy.load(dir, "
        "config={{'components.{component}.llms.{name}.llm.name': PATH}}), or initialize it again."
    )
    E068 = (
        "The voter '{name}' has chat = true, but its LLM '{llm}' has no chat template. Set it to null or "
        "false, or use an instruction-tuned LLM."
    )
    E069 = (
        "All voters of '{name}' failed on a document ({failed}). If they had no room, lower "
        "`max_batch_tokens`, `window` or `k` of [components.{name}], or let LLMs take turns with "
        "`resident = 1`; otherwise mend what is said of each. spaCy's error handler gets the document."
    )
    E070 = (
        "The voter '{name}' gave {given} answers to {asked} questions. Its `session` must answer "
        "every task and every span."
    )
    E071 = (
        "The voter '{voter}' of '{name}' is a {given}, not a block with "
        '@misc = "spacy_llmner.Voter.v1" or an object with all that a Voter has (missing: {missing}).'
    )
    E072 = (
        "{path} holds no complete pool of labelled texts ({reason}). Save the pipeline again with "
        "nlp.to_disk, or initialize it again."
    )
    E073 = (
        "The component '{name}' has no labels. Say which entities it shall find: labels = [...] in "
        "[components.{name}], nlp.get_pipe('{name}').set_labels(['disease', 'chemical']), or labelled "
        "examples with nlp.initialize(get_examples)."
    )
    E074 = (
        "'{name}' was saved with the verifier '{verifier}', which is not among its LLMs ({known}). What "
        "was saved wins over the config: load it with the LLMs it had, set nlp.get_pipe('{name}')"
        ".cfg['verifier'] to one that stays, and save it again."
    )
    E075 = (
        "The adapter '{path}' of the voter {name} can't be used ({reason}). `adapter` must be the "
        "folder of a padellm_ner or ra_it_ner that was trained on the voter's LLM, in a saved pipeline, "
        "such as training/padellm_ner/model-best/padellm_ner."
    )
    E080 = (
        "The prompt of the stream takes {tokens} tokens, but the LLM '{name}' has room for {most}. Give it "
        "a shorter text or fewer messages, or use an LLM that reads more."
    )
    E081 = "'{name}' has no setting `{setting}`. {hint}Its settings are: {known}."


class Warnings(metaclass=WithCodes):
    W001 = (
        "The feature cache in {path} can't be written ({reason}). Training goes on without it, "
        "but the LLM reads the corpus again in every epoch. Set `feature_cache` to a writable "
        "folder with enough space. What was cached before is kept and used."
    )
    W002 = (
        "{n} of {total} entities of the training data are longer than {max_words} tokens and "
        "can't be learnt by '{name}'. Raise `max_words` of its model to learn them."
    )
    W003 = (
        "{n} of {total} entities of the training data overlap others or are cut by a token of {tokenizer}, "
        "so '{name}' does not learn them."
    )
    W004 = (
        "'{name}' does not learn {n} of {total} windows of the training data, since not all entities in "
        "them are known: in {unknown}, tokens are not annotated or cut an entity; the end of {cut} cuts an "
        "entity (raise `window` to learn these)."
    )
    W010 = (
        "'{name}' has no labelled texts to show to its LLMs, so they work without demonstrations. Give it "
        "some with nlp.initialize(get_examples), or `paths.train` of its config."
    )
    W011 = (
        "{n} of {total} labelled texts given to '{name}' hold only labels that it is not asked for "
        "({labels}), and are not shown to its LLMs. Add those labels that are wanted."
    )
    W012 = (
        "'{name}' combines the span group '{key}', which several components write ({writers}): each "
        "replaces what the one before wrote. Give each a `spans_key` of its own, and name all in `keys`."
    )
    W013 = "'{name}' was saved with settings that this version does not have: {unknown}. They are ignored."
    W050 = (
        "No example of '{path}' has an entity ({where} is empty in all of them), so the examples will "
        "teach nothing. Entities in span groups are read with --spans-key KEY."
    )


def wrong(setting: str, name: str, value: Any, must: str) -> LLMNERError:
    """RETURNS (LLMNERError): About a setting of the component `name`."""
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
    """Check the settings of the component `name`.

    choices (Mapping[str, Sequence[str]]): The values that some settings may have.
    shares (Sequence[str]): Settings that are between 0 and 1.
    least (Mapping[str, int]): The least values of settings that are whole numbers.
    flags (Sequence[str]): Settings that are true or false.
    RAISES (LLMNERError): About the first setting with a value that makes no sense.
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
    """RETURNS (bool): Whether a value is a whole number that is not below another."""
    return isinstance(value, Integral) and int(value) >= least
