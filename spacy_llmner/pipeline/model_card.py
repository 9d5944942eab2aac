"""The model card: what a saved pipeline is, as fields of its meta.json, which `spacy package` writes into
the README.

spaCy writes meta.json before the components. Each component then adds what it knows to that file, so the
card is right however a pipeline was made. A field whose value is not the one that the card gave it belongs
to the user, and stays as it is.
"""

from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Dict, Iterable, List, Optional

import srsly
from spacy.util import get_minor_version_range

from ..models import catalogue

META = "meta.json"
# The field with the facts, and with the values that the card gave to spaCy's own fields.
CARD = "spacy_llmner"
SOURCE_URL = "https://github.com/spacy-llmner/spacy-llmner"
HUB_URL = "https://huggingface.co/"


@dataclass(frozen=True)
class UsedModel:
    """A model that a component reads and that is not saved with the pipeline.

    use (str): What it is used for, such as "LLM".
    name (str): A name from the catalogue, a local folder or a hub id.
    revision (Optional[str]): Revision of a hub id.
    fingerprint (Optional[str]): Fingerprint of the weights in training.
    """

    use: str
    name: str
    revision: Optional[str] = None
    fingerprint: Optional[str] = None


def encoder_model(encoder: Any) -> UsedModel:
    """encoder (Encoder): The encoder of a component that retrieves examples.
    RETURNS (UsedModel): The model that it uses.
    """
    llm = getattr(encoder, "llm", None)
    return UsedModel("sentence encoder", encoder.name if llm is None else llm.spec.name)


def update_card(
    folder: Path, factory: str, models: Iterable[UsedModel], corpus: Optional[Dict[str, int]]
) -> None:
    """Write what a saved component is into the meta.json of its pipeline. If the component was saved
    without a pipeline, nothing is written.

    folder (Path): The component's folder in the folder of the pipeline.
    factory (str): The name of the component's factory.
    models (Iterable[UsedModel]): The models that it needs.
    corpus (Optional[Dict[str, int]]): The numbers of "texts", "tokens" and "entities" that it was trained
        on; None if not known.
    """
    path = folder.parent / META
    if not path.exists():
        return
    meta = srsly.read_json(path)
    if folder.name not in meta.get("components", []):
        return
    card = meta.get(CARD, {})
    facts = {"factory": factory, "models": [_facts(m) for m in models], "corpus": corpus}
    components = {**card.get("components", {}), folder.name: facts}
    components = {name: components[name] for name in meta["components"] if name in components}
    before, fields = card.get("fields", {}), _fields(components, meta.get("labels", {}))
    for field, value in fields.items():
        if not meta.get(field) or meta[field] == before.get(field):
            meta[field] = value
    srsly.write_json(path, {**meta, CARD: {"components": components, "fields": fields}})


def _facts(model: UsedModel) -> Dict[str, Any]:
    """RETURNS (Dict[str, Any]): What is known about a model. A local folder is named by its last part."""
    known = catalogue.CATALOGUE.get(model.name)
    facts: Dict[str, Any] = asdict(model)
    if Path(model.name).is_dir() or Path(model.name).is_absolute():
        facts.update(name=Path(model.name).name, kind="folder")
    elif known is not None:
        facts.update(kind="catalogue", licence=known.licence, licence_url=known.licence_url)
    else:
        facts.update(kind="hub", url=HUB_URL + model.name if model.name.count("/") == 1 else None)
    return {key: value for key, value in facts.items() if value is not None}


def _fields(components: Dict[str, Any], labels: Dict[str, List[str]]) -> Dict[str, Any]:
    """RETURNS (Dict[str, Any]): The values of the fields that spaCy's README shows."""
    models = {m["name"]: m for facts in components.values() for m in facts["models"]}
    sources = []
    for name, model in models.items():
        source = {"name": f"{name} ({model['use']}, not included)"}
        if "licence" in model:
            source["license"] = model["licence"]
        if "url" in model:
            source["url"] = model["url"]
        sources.append(source)
    return {
        "description": _description(components, labels),
        "sources": sources,
        "requirements": [f"spacy-llmner{get_minor_version_range(version('spacy-llmner'))}"],
        "notes": _notes(components, list(models.values())),
    }


def _description(components: Dict[str, Any], labels: Dict[str, List[str]]) -> str:
    found = list(dict.fromkeys(label for name in components for label in labels.get(name, [])))
    what = "entities" if not found else ", ".join(found[:8]) + (", ..." if len(found) > 8 else "")
    models = [m for facts in components.values() for m in facts["models"]]
    names = [m["name"] for m in models if m["use"].startswith("LLM")]
    kinds = ", ".join(dict.fromkeys(facts["factory"] for facts in components.values()))
    by = f" on {', '.join(dict.fromkeys(names))}" if names else ""
    return f"Named entity recognition ({what}) with spacy-llmner: {kinds}{by}."


def _notes(components: Dict[str, Any], models: List[Dict[str, Any]]) -> str:
    used = ["Component", "Factory", "Model", "Used as", "Licence", "Revision", "Fingerprint"]
    rows = [
        [
            f"`{name}`",
            f"`{facts['factory']}`",
            _link(m["name"], m.get("url")),
            m["use"],
            _link(m.get("licence", "see the model"), m.get("licence_url")),
            m.get("revision", ""),
            f"`{m['fingerprint']}`" if "fingerprint" in m else "",
        ]
        for name, facts in components.items()
        for m in facts["models"]
    ]
    data = ["Component", "Texts", "Tokens", "Entities"]
    sizes = [[f"`{name}`", *_sizes(facts["corpus"])] for name, facts in components.items()]
    return "\n\n".join(
        [
            f"### Models\n\n{_table(used, rows)}" if rows else "",
            f"### Training data\n\n{_table(data, sizes)}",
            f"### How to run it\n\n{_how_to_run(models)}",
        ]
    ).strip()


def _sizes(corpus: Optional[Dict[str, int]]) -> List[str]:
    if corpus is None:
        return ["none, or not known", "", ""]
    return [f"{corpus[key]:,}" for key in ("texts", "tokens", "entities")]


def _how_to_run(models: List[Dict[str, Any]]) -> str:
    docs = f"{SOURCE_URL}/blob/main/docs/packaging.md"
    lines = [
        f"This pipeline needs the package [spacy-llmner]({SOURCE_URL}) and the models above, which are not "
        f"part of it. [Packaging a pipeline]({docs}) says how they are installed."
    ]
    commands = [catalogue.CATALOGUE[m["name"]].command for m in models if m["kind"] == "catalogue"]
    if commands:
        lines.append("```bash\n" + "\n".join(commands) + "\n```")
    folders = [f"`{m['name']}`" for m in models if m["kind"] == "folder"]
    if folders:
        lines.append(
            f"Local folders in training: {', '.join(folders)}. Say where they are when you load the "
            "pipeline."
        )
    return "\n\n".join(lines)


def _link(text: str, url: Optional[str]) -> str:
    text = text.replace("|", "\\|")
    return f"[{text}]({url})" if url else text


def _table(header: List[str], rows: List[List[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
