"""What every configuration is: declared fields that are checked whenever they are set, and the common ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Final

from pinnace.errors import ConfigError
from pinnace.models.configs.fields import FieldFacts, check, did_you_mean, fields_of, setting, size, wrong
from pinnace.models.configs.keys import FIXED, FIXED_REMEDIES, GENERATION, KEPT, NEVER_ACTED_ON
from pinnace.models.configs.labels import (
    PROBLEM_TYPES,
    check_problem,
    couple,
    generic_labels,
    label_index,
    numbered,
)

DTYPES: Final = (
    "float32",
    "float16",
    "bfloat16",
    "float64",
    "float8_e4m3fn",
    "float8_e5m2",
    "int8",
    "uint8",
)
# Names that are no fields and yet may be given: each sets or stands for fields.
VIRTUAL: Final = ("name_or_path", "_name_or_path", "num_labels", "torch_dtype", "model_type")


def dtype_name(value: Any) -> Any:
    """Return ``"float16"`` for that word, ``"torch.float16"`` or the torch object, without importing torch."""
    is_torch_dtype = (type(value).__module__, type(value).__name__) == ("torch", "dtype")
    return str(value).removeprefix("torch.") if is_torch_dtype or isinstance(value, str) else value


@dataclasses.dataclass(init=False, repr=False, eq=False)
class ConfigBase:
    """Fields with types and rules; see ``PreTrainedConfig`` for the class that users meet.

    A subclass declares its fields as annotated class attributes (``hidden_size: int = size(768)``) and needs no
    decorator. It may override ``upgrade_keys`` and ``validate``, and add to ``kept`` and ``fixed``.
    """

    model_type: ClassVar[str] = ""
    attribute_map: ClassVar[Mapping[str, str]] = {}
    # Documented class attributes that only programs beside Pinnace read.
    has_no_defaults_at_init: ClassVar[bool] = False
    keys_to_ignore_at_inference: ClassVar[list[str]] = []
    base_model_tp_plan: ClassVar[Mapping[str, Any] | None] = None
    base_model_pp_plan: ClassVar[Mapping[str, Any] | None] = None
    # Keys of this architecture's files that mean nothing to the model, and keys that only one value of is supported.
    kept: ClassVar[frozenset[str]] = KEPT
    fixed: ClassVar[Mapping[str, tuple[Any, ...]]] = FIXED

    transformers_version: str | None = None
    architectures: list[str] | None = None
    output_hidden_states: bool | None = False
    output_attentions: bool | None = False
    return_dict: bool | None = True
    dtype: str | None = setting(None, one_of=DTYPES)
    chunk_size_feed_forward: int = size(0, at_least=0)
    is_encoder_decoder: bool = False
    id2label: dict[int, str] | None = None
    label2id: dict[str, int] | dict[str, str] | None = None
    problem_type: str | None = setting(None, one_of=PROBLEM_TYPES)

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        dataclasses.dataclass(init=False, repr=False, eq=False)(cls)

    def __init__(self, **values: Any) -> None:
        """Build from the keys of a ``config.json`` of any age, or from keyword arguments.

        Raises:
            ConfigError: an unknown key, a wrong type, a value out of range or an impossible combination.
        """
        given, extras = self._sort_keys(self.upgrade_keys(self._plain_names(values)))
        self._check_model_type(given.pop("model_type", None))
        count = given.pop("num_labels", None)
        given["id2label"], given["label2id"] = couple(self._owner, given.get("id2label"), given.get("label2id"), count)
        object.__setattr__(self, "_name_or_path", "")
        for name, facts in fields_of(type(self)).items():
            self._set_field(name, given.pop(name) if name in given else facts.make_default(), facts)
        for name, value in {**given, **extras}.items():
            setattr(self, name, value)
        self.validate()

    # -- for subclasses ----------------------------------------------------------------------------------------------

    @classmethod
    def upgrade_keys(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Translate the keys of older files to today's; a subclass with renamed keys overrides this.

        Args:
            values: the keys as given; a copy that may be changed.
        """
        return values

    def validate(self) -> None:
        """Check every field again and the combinations of fields; a subclass adds its own after ``super()``.

        Raises:
            ConfigError: the text names the keys that do not fit.
        """
        for name, facts in fields_of(type(self)).items():
            value = getattr(self, name)
            check(self._owner, name, value, facts)
            if isinstance(value, ConfigBase):
                value.validate()
        if self.id2label is not None:
            numbered(self._owner, self.id2label)
        check_problem(self._owner, self.problem_type, self.num_labels)

    # -- properties that stand for fields ------------------------------------------------------------------------------

    @property
    def name_or_path(self) -> str:
        """Where the configuration was read from, if it was told."""
        return str(self.__dict__["_name_or_path"])

    @name_or_path.setter
    def name_or_path(self, value: Any) -> None:
        self.__dict__["_name_or_path"] = str(value)

    @property
    def num_labels(self) -> int:
        """Number of labels, the length of ``id2label``; setting another number makes generic labels."""
        return len(self.id2label or ())

    @num_labels.setter
    def num_labels(self, count: int) -> None:
        labels = generic_labels(self._owner, count)
        if len(labels) != self.num_labels:
            self.id2label, self.label2id = labels, label_index(labels)

    @property
    def torch_dtype(self) -> str | None:
        """The older name of ``dtype``."""
        return self.dtype

    @torch_dtype.setter
    def torch_dtype(self, value: Any) -> None:
        self.dtype = value

    @property
    def use_return_dict(self) -> bool | None:
        """The older name of ``return_dict``."""
        return self.return_dict

    # -- setting and reading -------------------------------------------------------------------------------------------

    def __setattr__(self, name: str, value: Any) -> None:
        name = self.attribute_map.get(name, name)
        facts = fields_of(type(self)).get(name)
        if facts is not None:
            self._set_field(name, value, facts)
        elif name == "_name_or_path":
            self.name_or_path = value
        elif name == "model_type":
            self._check_model_type(value)
        elif getattr(getattr(type(self), name, None), "fset", None):
            object.__setattr__(self, name, value)
        elif name in self.fixed:
            if value not in self.fixed[name]:
                remedy = FIXED_REMEDIES.get(name, "no other value is supported")
                raise wrong(self._owner, name, value, f"{self.fixed[name][0]!r}: {remedy}")
            self.__dict__[name] = value
        elif name in self.kept:
            self.__dict__[name] = value
        else:
            raise self._unknown(name)

    def __getattr__(self, name: str) -> Any:
        if name in type(self).attribute_map:
            return getattr(self, type(self).attribute_map[name])
        raise AttributeError(f"{type(self).__name__} has no key {name!r}{did_you_mean(name, fields_of(type(self)))}")

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.__dict__ == other.__dict__

    def __iter__(self) -> Iterator[str]:
        """Iterate over the keys that are set."""
        return iter(self.__dict__)

    def knows(self, name: str) -> bool:
        """Whether ``name`` can be set: a field, an alias, a property or a kept key that is present."""
        return name in fields_of(type(self)) or name in self.attribute_map or name in VIRTUAL or name in self.__dict__

    # -- how it is done ------------------------------------------------------------------------------------------------

    @property
    def _owner(self) -> str:
        return type(self).__name__

    def _check_model_type(self, model_type: Any) -> None:
        if self.model_type and model_type and model_type != self.model_type:
            raise ConfigError(
                f"{self._owner}: model_type is {model_type!r}, expected {self.model_type!r}; "
                "use the configuration class of that architecture, or AutoConfig"
            )

    def _set_field(self, name: str, value: Any, facts: FieldFacts) -> None:
        if name == "dtype":
            value = dtype_name(value)
        elif name == "id2label" and value is not None:
            value = numbered(self._owner, value)
        elif isinstance(value, Mapping):
            value = build_nested(facts.hint, value)
        check(self._owner, name, value, facts)
        self.__dict__[name] = value

    def _plain_names(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Resolve the aliases of ``attribute_map`` and the older name of ``dtype``."""
        plain = {name: value for name, value in values.items() if name not in self.attribute_map}
        for alias in values.keys() & self.attribute_map.keys():
            name = self.attribute_map[alias]
            if name in plain and plain[name] != values[alias]:
                raise ConfigError(f"{self._owner}: {name} and its alias {alias} are given with different values")
            plain[name] = values[alias]
        older = plain.pop("torch_dtype", None)
        if plain.get("dtype") is None and older is not None:
            plain["dtype"] = older
        return plain

    def _sort_keys(self, values: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Split into fields (and what stands for fields) and kept keys; drop what is never acted on."""
        given: dict[str, Any] = {}
        extras: dict[str, Any] = {}
        for name, value in values.items():
            if name in fields_of(type(self)) or name in VIRTUAL:
                given[name] = value
            elif name in self.fixed or name in self.kept:
                extras[name] = value
            elif name not in GENERATION and name not in NEVER_ACTED_ON:
                raise ConfigError(
                    f"{self._unknown(name)}; if the model does not depend on it, remove the key from config.json"
                )
        return given, extras

    def _unknown(self, name: str) -> ConfigError:
        if name in GENERATION:
            return ConfigError(f"{self._owner}: {name} is an option of generation; set it in generation_config.json")
        if name in NEVER_ACTED_ON:
            return ConfigError(f"{self._owner}: {name} is never acted on, so it cannot be set")
        known = [*fields_of(type(self)), *self.attribute_map, *self.kept, "num_labels", "name_or_path"]
        hint = did_you_mean(str(name), known)
        if not self.model_type:
            hint += "; the class of the architecture, or AutoConfig, knows more keys"
        return ConfigError(f"{self._owner}: unknown key {name!r}{hint}")


def nested_class(hint: Any) -> type[ConfigBase] | None:
    """Return the configuration class that a field's annotation names, alone or beside ``None``."""
    for option in (hint, *getattr(hint, "__args__", ())):
        if isinstance(option, type) and issubclass(option, ConfigBase):
            return option
    return None


def build_nested(hint: Any, value: Mapping[str, Any]) -> Any:
    """Turn a dict into the nested configuration that the annotation names; leave other dicts alone."""
    cls = nested_class(hint)
    return value if cls is None else cls(**value)
