"""The table of architectures: complete, in step with the tasks, and free of PyTorch until a head is asked for."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Collection
from pathlib import Path

import pytest
import transformers

import pinnace.models
from pinnace.errors import ConfigError, UsageError
from pinnace.export.tasks import TASKS
from pinnace.forms import FORMS
from pinnace.models.auto_config import AutoConfig, config_class
from pinnace.models.checkpoints.hub import hub_id
from pinnace.models.modeling import PreTrainedModel
from pinnace.models.registry import ARCHS, Arch, arch_named, arch_of, catalog_entry, head_class, supported
from pinnace.quantize.examples.defaults import _MAKERS
from pinnace.quantize.judging.task_metrics import METRICS
from pinnace.runtime.pipelines.table import PIPELINES
from pinnace.spec import TASK_ALIASES

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(("arch", "head"), [pytest.param(*pair, id=pair[1]) for pair in supported()])
def test_every_head_is_a_model_of_its_configuration(arch: Arch, head: str) -> None:
    model = head_class(arch, head)
    assert model.__name__ == head
    assert issubclass(model, PreTrainedModel)
    assert model.config_class is arch.config_class()
    assert model.name_rules is arch.names
    assert hasattr(transformers, head)
    assert getattr(pinnace.models, head) is model
    assert getattr(pinnace.models, arch.config_class().__name__) is arch.config_class()


@pytest.mark.parametrize("name", ARCHS)
def test_every_architecture_has_a_checkpoint_for_every_task_it_serves(name: str) -> None:
    arch = arch_named(name)
    assert arch.name == name
    assert config_class(name) is arch.config_class()
    assert set(arch.catalog) <= set(TASK_ALIASES)
    for task in arch.catalog:
        entry = catalog_entry(arch, task)
        assert "/" in hub_id(entry.repository)
        assert arch.config_class()(**entry.config)


def test_the_package_gives_heads_and_configurations_by_name() -> None:
    assert pinnace.models.AutoConfig is AutoConfig
    named = {"AutoConfig", "ApertusConfig", "BertConfig", *(head for _arch, head in supported())}
    assert named <= set(dir(pinnace.models))
    with pytest.raises(AttributeError, match=r"no attribute 'BertModl'; it has: AutoConfig, .*BertModel"):
        pinnace.models.BertModl  # noqa: B018


# Where every task has a row; tasks whose examples have labels also have one in pinnace.quantize.examples.labels.
TABLES: dict[str, Collection[str]] = {
    "pinnace.forms.FORMS": FORMS,
    "pinnace.export.tasks.TASKS": TASKS,
    "pinnace.models.registry, the catalog of bert": ARCHS["bert"].catalog,
    "pinnace.runtime.pipelines.table.PIPELINES": PIPELINES,
    "pinnace.quantize.judging.task_metrics.METRICS": METRICS,
    "pinnace.quantize.examples.defaults._MAKERS": _MAKERS,
}


@pytest.mark.parametrize("name", TABLES)
def test_every_task_has_its_row(name: str) -> None:
    assert set(TABLES[name]) == set(TASK_ALIASES)


def test_an_architecture_is_found_by_its_configuration() -> None:
    assert arch_of({"model_type": "bert", "hidden_size": 3}) is ARCHS["bert"]
    with pytest.raises(ConfigError, match=r"the model_type is 'roberta'; Pinnace has: apertus, bert$"):
        arch_of({"model_type": "roberta"})
    with pytest.raises(UsageError, match=r"unknown architecture 'roberta'. Did you mean 'bert'\?"):
        arch_named("roberta")
    for nothing in ({}, {"model_type": 3}, {"model_type": ""}):
        with pytest.raises(ConfigError, match=r"no model_type; expected one of: .*bert"):
            arch_of(nothing)


def test_unknown_words_name_the_nearest() -> None:
    with pytest.raises(UsageError, match="Did you mean 'BertForQuestionAnswering'"):
        head_class(ARCHS["bert"], "BertForQuestionAnswer")
    with pytest.raises(UsageError, match="the catalog has no bert for 'translation'"):
        catalog_entry(ARCHS["bert"], "translation")


def test_looking_things_up_needs_no_pytorch() -> None:
    code = (
        "import sys; from pinnace.models import registry; "
        "from pinnace.models.checkpoints import checkpoint, names, hub; "
        "arch = registry.arch_of({'model_type': 'bert'}); arch.config_class()(); list(registry.supported()); "
        "bad = {'torch', 'transformers', 'onnx'} & set(sys.modules); sys.exit(f'imported {bad}' if bad else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
