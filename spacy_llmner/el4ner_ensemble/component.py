"""The component `el4ner_ensemble`: several small LLMs extract entities, vote on their labels, and verify
them (EL4NER, arXiv 2505.23038)."""

import logging
from typing import Any, Callable, Dict, Iterable, List, Mapping, Optional, Sequence, Set, Tuple

from spacy.language import Language
from spacy.tokens import Doc
from spacy.training import Example, validate_examples, validate_get_examples
from thinc.api import Optimizer

from ..errors import Errors, LLMNERError
from ..llm.registry import make_llm
from ..pipeline.base import FACTORY_META, settings_model
from ..pipeline.gold import trim_mentions, warn_about_white_space
from ..pipeline.labels import check_labels, warn_about_misspelled
from ..pipeline.predictions import Prediction
from ..pipeline.settings import fill_settings
from ..pipeline.spans import Mention, filter_overlapping, token_spans
from ..retrieval.encoder import SentenceEncoder
from .call_counts import CallCounts
from .config import DEFAULT_CONFIG, check_different, check_settings, check_verifier, check_voters
from .demonstration_pipe import DemonstrationPipe
from .demonstrations.fill import fill_pool, uses_demonstrations
from .demonstrations.pool import DemonstrationPool, pool_texts
from .pos_weights import check_weights
from .provenance import TracedPrediction, failures, rejected, trace
from .stages import Decision, Ensemble
from .task_windows import DocTasks, tasks_of
from .vote_calibration import VoteCalibration, VotedText, fit
from .voter.llm_voter import default_voters, make_voter

logger = logging.getLogger("spacy_llmner")


@Language.factory("el4ner_ensemble", default_config=DEFAULT_CONFIG, **FACTORY_META)
def make_el4ner_ensemble_pipe(
    nlp: Language,
    name: str,
    llms: Dict[str, Any],
    encoder: SentenceEncoder,
    labels: Optional[List[str]],
    label_words: Dict[str, str],
    k: int,
    pool_size: int,
    retrieval: str,
    pre_extract: str,
    pos_weights: Dict[str, float],
    vote: str,
    verify: bool,
    verifier: Optional[str],
    verify_threshold: float,
    skip_unanimous: bool,
    resident: Optional[int],
    spans_key: str,
    overwrite: bool,
    provenance: bool,
    window: int,
    max_batch_tokens: int,
    scorer: Optional[Callable],
) -> "EL4NER":
    """Create an `el4ner_ensemble`. The LLMs and the encoder are loaded at first use.

    An ensemble reads each text in four stages:

    1. Pre-extraction: each LLM lists the entities of the text without demonstrations. The spans found
       decide which labelled texts become demonstrations.
    2. Extraction: each LLM lists the entities again, after the demonstrations. All spans found go on to
       the next stage.
    3. Classification: each LLM gives each span a probability for each label and for "no entity", and
       the LLMs vote.
    4. Verification: one LLM, the verifier, checks each entity.

    llms (Dict[str, Union[str, Voter]]): The voters, by name. Each is the name of an LLM, or a block with
        `@misc = "spacy_llmner.Voter.v1"`. If empty (default), the voters are Gemma 3 270M ("gemma") and
        SmolLM2-135M-Instruct ("smollm2").
    encoder (SentenceEncoder): The encoder that embeds spans and texts to compare them (`@misc =
        "spacy_llmner.SentenceEncoder.v1"`, default all-minilm-l6-v2).
    labels (Optional[List[str]]): The labels to find. They can be changed at any time with `set_labels`.
        None (default) reads them from the examples at initialization.
    label_words (Dict[str, str]): The names of labels in the prompts, such as PER = "person". A label
        without an entry keeps its own name.
    k (int): Number of demonstrations before a text. If they don't fit into an LLM, the least similar are
        left out first. Default 5.
    pool_size (int): Maximum number of labelled texts that are saved with the pipeline to choose
        demonstrations from. Default 200.
    retrieval (str): How demonstrations are chosen: by the similarity of their spans ("span", default, as
        published), by the similarity of the whole texts ("sentence"), at random ("random"), or not at all
        ("none").
    pre_extract (str): The spans of a labelled text that are compared if `retrieval` is "span": those that
        the LLMs find in it without demonstrations ("llm", default, as published), or its annotated entities
        ("gold"), for which no LLM has to run. With "llm", spans that the LLMs wrongly took for entities are
        also shown in the demonstrations, as examples of "no entity".
    pos_weights (Dict[str, float]): The weight of a span in the similarity, by the part of speech of its
        head: "propn", "noun", "pron" or "other". Default 4, 2, 1 and 0, as published. A part of speech
        without an entry has its default.
    vote (str): How the votes are counted: "majority" (default) or "probability". See
        `voting.count_votes`.
    verify (bool): Let one voter verify each entity (stage 4). Default True.
    verifier (Optional[str]): The name of that voter. None (default) uses the first in alphabetical order.
    verify_threshold (float): Entities to which the verifier gives a lower probability are dropped.
        Between 0 and 1, default 0.5.
    skip_unanimous (bool): Don't verify spans that all voters agree on. Default False.
    resident (Optional[int]): Maximum number of LLMs in memory at the same time. If it is lower than the
        number of LLMs, each stage loads the LLMs one after another. The results are the same. None
        (default) keeps all LLMs in memory.
    spans_key (str): Key of the doc.spans group for all spans found, with their scores in
        `attrs["scores"]`. Default "llmner".
    overwrite (bool): Replace entities that are already set on the Doc. If False, they are kept, and
        only entities that don't overlap them are added. Default True.
    provenance (bool): Write to `span._.el4ner` which voters proposed a span, how each voter voted, and
        the probability from the verifier; and write rejected spans to `doc._.el4ner_rejected`. Default
        False.
    window (int): Maximum number of LLM tokens of text in one prompt. It is reduced if an LLM has too few
        positions. Longer texts are split at sentence boundaries. Default 256.
    max_batch_tokens (int): Maximum number of tokens in memory at the same time, for each LLM. Default
        2048.
    scorer (Optional[Callable]): The scoring method.
    RETURNS (EL4NER): The component.
    RAISES (LLMNERError): If a setting is not valid.
    """
    return EL4NER(
        nlp,
        llms,
        encoder,
        name,
        labels=labels,
        label_words=label_words,
        k=k,
        pool_size=pool_size,
        retrieval=retrieval,
        pre_extract=pre_extract,
        pos_weights=pos_weights,
        vote=vote,
        verify=verify,
        verifier=verifier,
        verify_threshold=verify_threshold,
        skip_unanimous=skip_unanimous,
        resident=resident,
        spans_key=spans_key,
        overwrite=overwrite,
        provenance=provenance,
        window=window,
        max_batch_tokens=max_batch_tokens,
        scorer=scorer,
    )


class EL4NER(DemonstrationPipe):
    """The component `el4ner_ensemble`: several LLMs vote. Nothing is trained. `initialize` selects labelled
    texts, which are shown to the LLMs as demonstrations.
    """

    factory = "el4ner_ensemble"

    def __init__(
        self,
        nlp: Language,
        llms: Mapping[str, Any],
        encoder: SentenceEncoder,
        name: str = "el4ner_ensemble",
        *,
        label_words: Optional[Mapping[str, str]] = None,
        pos_weights: Optional[Mapping[str, float]] = None,
        scorer: Optional[Callable] = None,
        **settings: Any,
    ) -> None:
        """Create the component. See `make_el4ner_ensemble_pipe` for the arguments.

        settings: The settings of `make_el4ner_ensemble_pipe`. A setting that is not given has its default
            value.
        RAISES (LLMNERError): If a setting does not exist or is not valid.
        """
        settings = fill_settings(name, DEFAULT_CONFIG, settings)
        labels, verifier = settings.pop("labels"), settings["verifier"]
        check_settings(name, **settings)
        self.resident = settings.pop("resident")
        self.max_batch_tokens = settings.pop("max_batch_tokens")
        # The LLMs belong to the voters. The component itself has none.
        super().__init__(
            nlp,
            make_llm(),
            settings_model("el4ner", None),
            name,
            scorer=scorer,
            label_words=dict(label_words or {}),
            pos_weights=check_weights(name, pos_weights or {}),
            voters={},
            read_labels=[],
            factors={},
            weights={},
            # This stays the same if the component is sourced into a pipeline of another language.
            lang=nlp.lang or "en",
            **settings,
        )
        voters = {key: make_voter(x) if isinstance(x, str) else x for key, x in llms.items()}
        self.voters = check_voters(name, voters or default_voters(), verifier)
        for key, voter in self.voters.items():
            voter.register(key, self.max_batch_tokens, name)
        self.pool = DemonstrationPool(encoder)
        self.call_counts = CallCounts()
        self.set_labels([] if labels is None else labels)

    def __repr__(self) -> str:
        llms = ", ".join(f"{key}={voter!r}" for key, voter in self.voters.items())
        labels, n = ", ".join(self.labels), len(self.pool)
        return f"EL4NER(name={self.name!r}, llms=[{llms}], labels=[{labels}], {n} labelled texts)"

    def set_labels(self, labels: Iterable[str]) -> None:
        """Set the labels to find from now on. They need no examples.

        labels (Iterable[str]): The labels, such as ["PERSON", "river"].
        RAISES (LLMNERError): If they are not valid.
        """
        checked = check_labels(self.name, labels)
        for label in checked:
            self.vocab.strings.add(label)
        if isinstance(self.cfg["label_words"], dict):  # it is validated when it is used
            warn_about_misspelled(self.name, self.cfg["label_words"], checked)
        self.cfg["labels"], self.cfg["read_labels"] = checked, []

    def predict(self, docs: Iterable[Doc]) -> List[Prediction]:
        """Predict entities without changing the Docs.

        docs (Iterable[Doc]): The Docs.
        RETURNS (List[Prediction]): The prediction for each Doc.
        RAISES (LLMNERError): If there are no labels, if a setting in `cfg` is not valid, if a voter's LLM
            is not the one it had at initialization, or if all voters failed on a Doc.
        """
        self._check_ready()
        with self.residency.exclusive():
            docs_tasks = [self._read(doc) for doc in docs]
            if not self._compared:  # the LLMs are loaded now, so it is known what "auto" means
                check_different(self.name, self.voters)
                self._compared = True
            ensemble = self._ensemble()
            try:
                decisions = iter(self._decide(ensemble, docs_tasks))
            finally:  # failed calls count too
                self.call_counts.add(ensemble.call_counts)
                ensemble.call_counts.log(self.name, len(docs_tasks))
        out: List[Prediction] = []
        for doc_tasks in docs_tasks:
            calls = sum(task.calls for task in doc_tasks.tasks)
            text = doc_tasks.doc.text[:40]
            logger.debug("%s: %d LLM calls for the text %r", self.name, calls, text)
            of_doc = [d for _ in doc_tasks.tasks for d in next(decisions)]
            out.append(self._prediction(doc_tasks, of_doc))
        return out

    def _check_cfg(self) -> None:
        # Settings can be changed in `cfg` at any time.
        self.check_cfg()
        check_settings(self.name, self.resident, max_batch_tokens=self.max_batch_tokens, **self.cfg)
        check_weights(self.name, self.cfg["pos_weights"])
        check_verifier(self.name, self.voters, self.cfg["verifier"])

    def _check_ready(self) -> None:
        self._check_cfg()
        if not self.labels:
            raise LLMNERError(Errors.E073.format(name=self.name))

    def _decide(self, ensemble: Ensemble, docs_tasks: Sequence[DocTasks]) -> List[List[Decision]]:
        self._demonstrate(ensemble, docs_tasks)
        return ensemble.decide(tasks_of(docs_tasks))

    def set_annotations(self, docs: Iterable[Doc], scores: Sequence[Prediction]) -> None:
        """Write predictions to the Docs: the entities, the voters that failed and, if `provenance` is on,
        the provenance of each span.

        docs (Iterable[Doc]): The Docs.
        scores (Sequence[Prediction]): Their predictions, from `predict`.
        """
        docs = list(docs)
        super().set_annotations(docs, scores)
        for doc, prediction in zip(docs, scores):
            if isinstance(prediction, TracedPrediction):
                prediction.write_extensions(doc, self.cfg["spans_key"])

    def _prediction(self, doc_tasks: DocTasks, decisions: Sequence[Decision]) -> TracedPrediction:
        kept = [d for d in decisions if d.kept]
        mentions = [Mention(d.start, d.end, d.label, d.score) for d in kept]
        ents = token_spans(doc_tasks.doc, filter_overlapping(mentions))
        spans = token_spans(doc_tasks.doc, mentions)
        if not self.cfg["provenance"]:
            return TracedPrediction(ents, spans, failures(doc_tasks.tasks))
        traces = {(d.start, d.end): trace(d) for d in kept}
        others = [rejected(d) for d in decisions if not d.kept]
        return TracedPrediction(ents, spans, failures(doc_tasks.tasks), traces, others)

    def initialize(
        self,
        get_examples: Callable[[], Iterable[Example]],
        *,
        nlp: Optional[Language] = None,
        labels: Optional[List[str]] = None,
    ) -> None:
        """Select labelled texts for demonstrations, and let the LLMs find the spans in them.

        get_examples (Callable[[], Iterable[Example]]): Returns the training examples.
        nlp (Optional[Language]): The pipeline.
        labels (Optional[List[str]]): The labels. None uses those of the config or of `set_labels`. If
            there are none there either, the labels are read from the examples.
        RAISES (LLMNERError): If there are no labels, if two voters turn out to be the same, or if the
            encoder or an LLM can't be used.
        """
        validate_get_examples(get_examples, "EL4NER.initialize")
        self._check_cfg()
        examples = list(get_examples())
        self.record_corpus(examples, nlp)
        references = [eg.reference for eg in examples]
        warn_about_white_space(self.name, references)
        texts = list(pool_texts(references))
        with self.residency.exclusive():
            if labels is not None:
                self.set_labels(labels)
            else:
                self._read_labels({x for t in texts for _, _, x in t.example.entities})
            if not self.labels:
                raise LLMNERError(Errors.E023.format(name=self.name))
            self.reset_pool()
            if uses_demonstrations(self.cfg):
                # Raises an error if the encoder is missing, before the LLMs read for an hour.
                logger.debug("labelled texts are encoded by %s", self.pool.encoder.fingerprint)
            for key, voter in self.voters.items():
                self.residency.reserve(voter)
                self.cfg["voters"][key] = voter.prepare(self.label_set)
            check_different(self.name, self.voters)
            fill_pool(self.pool, texts, self._ensemble(), self.name, self.cfg)

    def _read_labels(self, seen: Set[str]) -> None:
        """Set the labels of a corpus, unless the user has set labels. They replace the labels of an earlier
        corpus.

        seen (Set[str]): The labels of the corpus.
        """
        before = set(self.cfg["read_labels"])
        given = [label for label in self.labels if label not in before]
        if seen and (before or not given):
            self.set_labels([*given, *sorted(seen.difference(given))])
            self.cfg["read_labels"] = sorted(seen.difference(given))

    def calibrate(self, examples: Iterable[Example]) -> VoteCalibration:
        """Calibrate the votes on held-out texts, such as those of the dev corpus. This fits the weight of
        each voter, and factors that correct its bias towards some labels (see `vote_calibration`). Both are
        stored in `cfg`, and saved with the pipeline. Each text is read once.

        examples (Iterable[Example]): Annotated texts. If the component uses annotations by components
            before it, such as a tagger, `predicted` must have these annotations.
        RETURNS (VoteCalibration): The factors and weights, by voter and label ("" stands for "no
            entity"), and the F1 before and after.
        RAISES (LLMNERError): See `check_calibration` and `predict`.
        """
        examples = self.check_calibration(examples)
        with self.residency.exclusive():
            docs_tasks = [self._read(eg.predicted) for eg in examples]
            ensemble = self._ensemble()
            self._demonstrate(ensemble, docs_tasks)
            votes = iter(ensemble.poll(tasks_of(docs_tasks)))
            ensemble.call_counts.log(f"{self.name}, calibration", len(docs_tasks))
        texts = []
        for eg, doc_tasks in zip(examples, docs_tasks):
            ents = trim_mentions(eg.reference).ents
            gold = {(ent.start_char, ent.end_char): ent.label_ for ent in ents}
            of_doc = {span: v for _ in doc_tasks.tasks for span, v in next(votes).items()}
            texts.append(VotedText(of_doc, gold))
        weights = {name: voter.weight for name, voter in self.voters.items()}
        fitted = fit(texts, weights, self.labels, self.cfg["vote"])
        self.cfg.update(factors=fitted.factors, weights=fitted.weights)
        return fitted

    def check_calibration(self, examples: Iterable[Example]) -> List[Example]:
        """Check that `calibrate` can be called with these texts. The LLMs are loaded, but read nothing.

        examples (Iterable[Example]): Annotated texts.
        RETURNS (List[Example]): Those that are annotated.
        RAISES (LLMNERError): If no text has an entity, there are no labels, a setting in `cfg` is not
            valid, or an LLM can't be loaded.
        """
        given = list(examples)
        validate_examples(given, "EL4NER.calibrate")
        annotated = [eg for eg in given if eg.reference.has_annotation("ENT_IOB")]
        n = sum(1 for eg in annotated if eg.reference.ents)
        if not n:
            counts = {"total": len(given), "annotated": len(annotated), "n": n}
            raise LLMNERError(Errors.E045.format(name=self.name, **counts))
        self._check_ready()
        with self.residency.exclusive():
            self._read(annotated[0].predicted)  # its length in tokens, for which each LLM is loaded
        return annotated

    def update(
        self,
        examples: Iterable[Example],
        *,
        drop: float = 0.0,
        sgd: Optional[Optimizer] = None,
        losses: Optional[Dict[str, float]] = None,
    ) -> Dict[str, float]:
        """Do nothing. The ensemble is not trained: `initialize` selects its labelled texts.

        RETURNS (Dict[str, float]): The losses, with 0.0 for this component.
        """
        losses = {} if losses is None else losses
        losses.setdefault(self.name, 0.0)
        validate_examples(examples, "EL4NER.update")
        logger.debug("'%s' is not trained: its LLMs read demonstrations instead", self.name)
        return losses

    def get_loss(self, examples: Iterable[Example], scores: Any) -> Tuple[float, None]:
        """RETURNS (Tuple[float, None]): 0.0 and None, because nothing is trained."""
        return 0.0, None
