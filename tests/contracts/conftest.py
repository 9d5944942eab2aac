"""Each contract test runs for all components, except where it says for which."""

import pytest

from tests.contracts.components import BY_NAME, NAMES, initialized


@pytest.fixture(params=NAMES)
def component(request):
    return BY_NAME[request.param]


@pytest.fixture
def llm(component, llm_of):
    """Folder of the component's LLM, or of its LLMs."""
    return llm_of(component.name)


@pytest.fixture
def make(component, llm):
    """Make a pipeline with the component, not initialized: make(lang=, cfg=, **model)."""
    return lambda **settings: component.make(llm, **settings)


@pytest.fixture
def fresh(make):
    """Initialized, but not trained. Tests can change it."""
    return initialized(make())


@pytest.fixture
def trained(component, pipelines):
    """Trained with the default settings. Tests leave it as it is."""
    return pipelines(component.name)


@pytest.fixture
def pipe(component, trained):
    return trained.get_pipe(component.name)


@pytest.fixture
def saved(component, trained, tmp_path):
    """Folder of the trained pipeline."""
    trained.to_disk(tmp_path / "saved")
    return tmp_path / "saved"
