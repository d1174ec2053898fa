"""Config: a checked view of the keys of a Hugging Face ``config.json``.

Each family asks for what it needs. A value that is not of the type that it must be, or out of bounds,
is an InputError that names file, key, value and what is allowed; so no later code meets a hostile one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from dsplan.errors import InputError, choice

#: Widths, vocabularies, positions, experts: beyond it a number is a slip or an attack.
LARGEST_DIMENSION = 10_000_000
#: ``model_type`` of a module of one's own.
MODULE = "module"
#: PEFT's word for every linear layer but the head's.
ALL_LINEAR = "all-linear"
#: Names of activations (transformers activations.py ``ACT2CLS``) that decoders of these families have.
ACTIVATIONS = ("silu", "swish", "gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh", "relu", "quick_gelu")
#: Blocks: the deepest published decoder has 200.
MOST_LAYERS = 10_000
#: Heads of one block: the widest published decoder has 128.
MOST_HEADS = 4_096


class Config:
    """The keys of one configuration; ``where`` begins every message.

    ``renamed`` are the names under which older files have a key, as the ``attribute_map`` of transformers'
    configuration class says.
    """

    def __init__(self, keys: Mapping[str, Any], where: str, renamed: Mapping[str, tuple[str, ...]] | None = None):
        self.keys = keys
        self.where = where
        self._renamed = renamed or {}

    def __contains__(self, key: str) -> bool:
        return self._found(key)[1] is not None

    def count(self, key: str, default: int | None = None, *, most: int = LARGEST_DIMENSION) -> int:
        """An integer of 1 to ``most``; null is as good as missing.

        Raises:
            InputError: another value, or none where there is no ``default``.
        """
        name, value = self._found(key)
        if value is None:
            if default is None:
                raise InputError(f"{self.where}: {key} is missing; a {self.family} configuration needs it")
            return default
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
            raise self._refused(name, value, f"an integer of 1 to {most:,}")
        return value

    def optional_count(self, key: str, *, most: int = LARGEST_DIMENSION) -> int | None:
        """As :meth:`count`; None where the key is missing or null."""
        return self.count(key, most=most) if key in self else None

    def amount(self, key: str, default: int, *, most: int = LARGEST_DIMENSION) -> int:
        """An integer of 0 to ``most``."""
        name, value = self._found(key)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most:
            raise self._refused(name, value, f"an integer of 0 to {most:,}")
        return value

    def flag(self, key: str, default: bool) -> bool:
        """true or false."""
        name, value = self._found(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self._refused(name, value, "true or false")
        return value

    def probability(self, key: str, default: float = 0.0) -> float:
        """A number of at least 0 and below 1."""
        name, value = self._found(key)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0.0 <= value < 1.0:
            raise self._refused(name, value, "a number of at least 0 and below 1")
        return float(value)

    def positive(self, key: str, default: float | None = None) -> float | None:
        """A number above 0, or ``default`` where the key is missing or null."""
        name, value = self._found(key)
        if value is None:
            return None if key in self.keys else default
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0.0 < value < 1e12:
            raise self._refused(name, value, "a number above 0")
        return float(value)

    def name(self, key: str, default: str, allowed: tuple[str, ...]) -> str:
        """One of ``allowed``."""
        name, value = self._found(key)
        if value is None:
            return default
        if not isinstance(value, str):
            raise self._refused(name, value, f"one of {', '.join(allowed)}")
        try:
            return choice(name, value[:80], allowed)
        except InputError as error:
            raise InputError(f"{self.where}: {error}") from error

    def names(self, key: str, length: int, allowed: tuple[str, ...]) -> tuple[str, ...] | None:
        """A list of ``length`` names, each one of ``allowed``; None where the key is missing or null."""
        name, value = self._found(key)
        if value is None:
            return None
        if isinstance(value, list) and len(value) == length:
            wrong = [item for item in value if item not in allowed]
            if not wrong:
                return tuple(value)
            raise self._refused(name, wrong[0], f"one of {', '.join(allowed)}")
        raise self._refused(name, value, f"a list of {length} of {', '.join(allowed)}")

    def layers(self, key: str, num_layers: int) -> frozenset[int]:
        """A list of indices of layers; empty where the key is missing or null. What is beyond the last is ignored."""
        name, value = self._found(key)
        if value is None:
            return frozenset()
        if not isinstance(value, list) or any(isinstance(item, bool) or not isinstance(item, int) for item in value):
            raise self._refused(name, value, "a list of indices of layers")
        return frozenset(item for item in value if 0 <= item < num_layers)

    def section(self, key: str) -> Mapping[str, Any]:
        """An object of keys; empty where it is missing or null."""
        name, value = self._found(key)
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise self._refused(name, value, "an object")
        return value

    def is_null(self, key: str) -> bool:
        """Whether the key is there and null, which may mean something else than a missing one."""
        return any(name in self.keys and self.keys[name] is None for name in (key, *self._renamed.get(key, ())))

    @property
    def family(self) -> str:
        """The ``model_type``, for messages."""
        return str(self.keys.get("model_type", "decoder"))

    # What most families have under these names.

    def num_layers(self) -> int:
        """Blocks: ``num_hidden_layers``."""
        return self.count("num_hidden_layers", most=MOST_LAYERS)

    def num_heads(self, default: int | None = None) -> int:
        """Heads of the queries: ``num_attention_heads``."""
        return self.count("num_attention_heads", default, most=MOST_HEADS)

    def divided(self, hidden_size: int, heads: int) -> int:
        """The width of one head where the heads share ``hidden_size``.

        Raises:
            InputError: they do not divide it.
        """
        if hidden_size % heads:
            raise InputError(
                f"{self.where}: num_attention_heads: {heads} heads do not divide the hidden_size of {hidden_size}"
            )
        return hidden_size // heads

    def key_value_heads(self, heads: int, default: int | None = None) -> int:
        """Heads of keys and values; they divide the heads of queries.

        Raises:
            InputError: they do not.
        """
        usual = heads if default is None or self.is_null("num_key_value_heads") else default
        found = self.count("num_key_value_heads", usual, most=MOST_HEADS)
        if heads % found:
            raise InputError(
                f"{self.where}: num_key_value_heads: {found} do not divide the {heads} heads of num_attention_heads"
            )
        return found

    def rotary_size(self, head_size: int, old_key: str, default: float) -> int:
        """Elements of a head that rotate: a share from ``rope_parameters``, or the key that older files have."""
        rope = Config(self.section("rope_parameters"), f"{self.where}: rope_parameters")
        share = rope.positive("partial_rotary_factor") or self.positive(old_key) or default
        return min(head_size, int(head_size * share))

    def _found(self, key: str) -> tuple[str, Any]:
        for name in (key, *self._renamed.get(key, ())):
            if self.keys.get(name) is not None:
                return name, self.keys[name]
        return key, None

    def _refused(self, name: str, value: object, allowed: str) -> InputError:
        return InputError(f"{self.where}: {name}: {short(value)} is not allowed; it must be {allowed}")


def short(value: object) -> str:
    """A value as it stands in the file, short enough for one line; long ones are not written out first."""
    if isinstance(value, (list, dict)):
        return f"{'a list' if isinstance(value, list) else 'an object'} of {len(value)}"
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 128:
        return f"an integer of {value.bit_length()} bits"
    text = json.dumps(value[:40] if isinstance(value, str) else value)
    return text if len(text) <= 40 else f"{text[:37]}..."
