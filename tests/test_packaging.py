"""Wheels: the package's own, and those of pipelines, which load on a machine that has no repository."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from email import message_from_string
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import spacy_llmner

ROOT = Path(__file__).parents[1]
ARCHIVE = ROOT / "tests" / "data" / "saved_by_0.1.0.zip"
PIPELINES = ("ember_probe", "el4ner_ensemble")
NAMES = [f"en_{name}" for name in PIPELINES]

# Without a network, pip finds nothing in an index.
OFFLINE = {**os.environ, "PIP_NO_INDEX": "1", "HF_HUB_OFFLINE": "1"}

# What a user runs on the other machine. It prints what each pipeline finds.
LOAD = """
import json, sys
import spacy, spacy_llmner

llm, *names = sys.argv[1:]
try:
    spacy.load(names[0])("Mira Stone left Port Ellam.")
except spacy_llmner.LLMNotFoundError as e:
    error = str(e)
found = {}
texts = json.load(sys.stdin)
for name in names:
    nlp = spacy.load(name, config={"paths.llm": llm})
    found[name] = [
        [[ent.start_char, ent.end_char, ent.label_] for ent in doc.ents] for doc in nlp.pipe(texts)
    ]
print(json.dumps({"error": error, "file": spacy_llmner.__file__, "found": found}))
"""


def python(*args, executable=sys.executable, **kwargs):
    """RETURNS (str): What the command printed."""
    command = [str(executable), *map(str, args)]
    done = subprocess.run(command, capture_output=True, encoding="utf8", env=OFFLINE, **kwargs)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Folder with the wheel and the sdist of a copy of the repository."""
    source, dist = tmp_path_factory.mktemp("source") / "repo", tmp_path_factory.mktemp("dist")
    ignored = [line.strip("/") for line in (ROOT / ".gitignore").read_text().splitlines()]
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(".git", *filter(None, ignored)))
    python("-m", "build", "--no-isolation", "--outdir", dist, source)
    return dist


@pytest.fixture(scope="module")
def wheel(built):
    return next(built.glob("*.whl"))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    zipfile.ZipFile(ARCHIVE).extractall(folder)
    return folder / "saved_by_0.1.0"


@pytest.fixture(scope="module")
def pipeline_wheels(run, saved, tmp_path_factory):
    out = tmp_path_factory.mktemp("packages")
    with pytest.MonkeyPatch.context() as m:
        m.setenv("PIP_NO_INDEX", "1")
        for name in PIPELINES:
            options = ("--name", name, "--version", "1.2.3", "--build", "wheel")
            run("package", saved / name, out, *options)
    return [next(out.glob(f"{name}-1.2.3/dist/*.whl")) for name in NAMES]


def package_files():
    package = Path(spacy_llmner.__file__).parent
    files = (path for path in package.rglob("*") if path.is_file())
    return {path.relative_to(package.parent).as_posix() for path in files if path.suffix != ".pyc"}


def test_wheel(wheel):
    """It contains the whole package, and nothing else."""
    names = set(zipfile.ZipFile(wheel).namelist())
    info = {name for name in names if ".dist-info/" in name}
    assert names - info == package_files()
    assert "spacy_llmner/el4ner_ensemble/prompts/en_chat.txt" in names
    endings = ("/METADATA", "/RECORD", "/WHEEL", "/entry_points.txt", "/top_level.txt", "/LICENSE")
    assert len(info) == len(endings) and all(name.endswith(endings) for name in info)


def test_sdist(built):
    with tarfile.open(next(built.glob("*.tar.gz"))) as sdist:
        files = [member.name for member in sdist.getmembers() if member.isfile()]
    names = {name.partition("/")[2] for name in files}
    names = {name for name in names if not name.startswith("spacy_llmner.egg-info/")}
    build_files = {"MANIFEST.in", "PKG-INFO", "pyproject.toml", "setup.cfg"}
    assert names == package_files() | build_files | {"LICENSE", "README.md"}


def test_metadata(wheel):
    meta = metadata(wheel)
    assert meta["Name"] == "spacy-llmner" and meta["Version"] == spacy_llmner.__version__
    assert {"build", "encoder", "test"} <= set(meta.get_all("Provides-Extra"))
    urls = dict(url.split(", ") for url in meta.get_all("Project-URL"))
    assert {"Source", "Documentation"} <= set(urls)


def test_constraints(wheel):
    """Both sets of tested versions pin what the package requires, and differ only where they must."""
    pins, pins_5 = (
        dict(line.split("==") for line in (ROOT / name).read_text().split() if "==" in line)
        for name in ("constraints.txt", "constraints-transformers5.txt")
    )
    requirements = [Requirement(line) for line in metadata(wheel).get_all("Requires-Dist")]
    for requirement in requirements:
        if requirement.marker is None:
            assert requirement.specifier.contains(pins[requirement.name])
            assert requirement.specifier.contains(pins_5[requirement.name])
    assert "spacy-transformers" not in pins_5
    versions = {"transformers", "tokenizers", "huggingface_hub"}
    assert {name for name in pins_5 if pins_5[name] != pins[name]} == versions
    assert pins.keys() - pins_5.keys() == {"spacy-transformers", "spacy-alignments"}


def test_requirements_of_a_pipeline(pipeline_wheels):
    """The installed versions meet them."""
    for path in pipeline_wheels:
        requirements = [Requirement(line) for line in metadata(path).get_all("Requires-Dist")]
        assert {"spacy", "spacy-llmner"} == {requirement.name for requirement in requirements}
        for requirement in requirements:
            assert requirement.specifier.contains(version(requirement.name))


def test_another_machine(wheel, pipeline_wheels, saved, tmp_path):
    """In an environment with only the wheels and the dependencies, and with the LLM in another folder,
    pipelines find what they found when they were saved."""
    venv.create(tmp_path / "venv", with_pip=False)
    base = {"base": str(tmp_path / "venv"), "platbase": str(tmp_path / "venv")}
    scripts, site = (
        Path(sysconfig.get_path(kind, "venv", base)) for kind in ("scripts", "purelib")
    )
    # The dependencies. Python does not read the .pth files there, so the editable install is left out.
    there = {sysconfig.get_path(kind) for kind in ("purelib", "platlib")}
    (site / "dependencies.pth").write_text("\n".join(sorted(there)) + "\n")
    python("-m", "pip", "install", "-q", "--no-deps", "--target", site, wheel, *pipeline_wheels)
    shutil.copytree(saved / "llm", tmp_path / "models" / "llm")

    expected = json.loads((saved / "expected.json").read_text())
    rows = {f"en_{name}": expected[name] for name in PIPELINES}
    texts = [row["text"] for row in rows[NAMES[0]]]
    for name in NAMES:
        assert [row["text"] for row in rows[name]] == texts
    printed = python(
        *("-I", "-c", LOAD, tmp_path / "models" / "llm", *NAMES),
        executable=scripts / "python",
        input=json.dumps(texts),
        cwd=tmp_path,
    )
    result = json.loads(printed.splitlines()[-1])
    assert Path(result["file"]).is_relative_to(site)
    assert "spacy.load(NAME, config={'paths.llm': FOLDER})" in result["error"]
    for name in NAMES:
        assert result["found"][name] == [row["ents"] for row in rows[name]]


def metadata(wheel):
    """RETURNS (Message): The metadata in a wheel."""
    with zipfile.ZipFile(wheel) as file:
        name = next(name for name in file.namelist() if name.endswith(".dist-info/METADATA"))
        return message_from_string(file.read(name).decode("utf8"))
