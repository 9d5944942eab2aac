"""Small pipelines of all components, by component and kind. See the fixture `pipelines`."""

from tests.el4ner_ensemble import helpers as el4ner_ensemble
from tests.ember_probe import helpers as ember_probe
from tests.padellm_ner import helpers as padellm_ner
from tests.ra_it_ner import helpers as ra_it_ner

PIPELINES = {
    "ember_probe": ember_probe.PIPELINES,
    "padellm_ner": padellm_ner.PIPELINES,
    "ra_it_ner": ra_it_ner.PIPELINES,
    "el4ner_ensemble": el4ner_ensemble.PIPELINES,
}
