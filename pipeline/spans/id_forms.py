"""Forms of ids: how the ids of a file become those of a store, and which form would do so."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from pipeline.errors import ConfigError

_N_COMPARED = 20
"""Ids for which a form is looked for."""
_N_NEAR = 20
"""Ids of the store with the same name that are looked at for each."""
_N_RANKED = 500
"""Ids of the file by which forms are ranked."""


@dataclass(frozen=True)
class IdForm:
    """A form that makes ids of a file equal to those of a store.

    Attributes:
        form: The form, a text with {id}, {stem} or {name}.
        one: An id of the file.
        near: The id of the store that the form makes of it.
        n_found: Number of the ids of the file that it makes equal.
    """

    form: str
    one: str
    near: str
    n_found: int


def id_fields(utterance: str) -> dict[str, str]:
    """Return the fields of a form for an id: the id, its stem and its name."""
    folder, slash, last = utterance.rpartition("/")
    name = last.rpartition(".")[0] or last
    return {"id": utterance, "stem": f"{folder}{slash}{name}", "name": name}


def id_maker(form: str, setting: str = "id_form") -> Callable[[str], str]:
    """Return what makes an id from that of the file.

    Args:
        form: A text with {id}, {stem} (the id without extension) or {name} (without folders, too).
        setting: Name of the setting, for messages.

    Raises:
        ConfigError: The form names something else.
    """

    def made(utterance: str) -> str:
        return form.format(**id_fields(utterance))

    try:
        if made("a") == made("b"):
            raise ValueError("all ids would be the same")
    except (KeyError, IndexError, ValueError, AttributeError) as error:
        raise ConfigError(
            f"{setting} is {form!r} ({error}); expected a text with {{id}}, {{stem}} or {{name}}"
        ) from error
    return made


def find_id_form(unknown: Sequence[str], ids: Iterable[str]) -> IdForm | None:
    """Return the form that makes most ids of a file equal to ids of a store, or None.

    Args:
        unknown: Ids of the file that are not in the store.
        ids: Ids of the store.
    """
    known = set(ids)
    by_name: dict[str, list[str]] = defaultdict(list)
    for name in sorted(known):
        by_name[id_fields(name)["name"]].append(name)
    pairs: dict[str, tuple[str, str]] = {}
    for one in unknown[:_N_COMPARED]:
        for near, form in _forms(one, by_name):
            pairs.setdefault(form, (one, near))

    def n_found(form: str, some: Sequence[str]) -> int:
        make = id_maker(form)
        return sum(make(item) in known for item in some)

    if not pairs:
        return None
    # of equal ones the shortest names the fewest folders
    best = max(pairs, key=lambda form: (n_found(form, unknown[:_N_RANKED]), -len(form)))
    return IdForm(best, *pairs[best], n_found(best, unknown))


def _forms(one: str, by_name: dict[str, list[str]]) -> Iterator[tuple[str, str]]:
    """Yield ids of the store that are like an id, and the forms that make them of it.

    Of the fields of the id the longest that such an id contains is taken.
    """
    fields = id_fields(one)
    near = by_name.get(fields["name"]) or by_name.get(one.rpartition("/")[2]) or []
    for field, value in fields.items():
        is_any = False
        for name in near[:_N_NEAR]:
            before, match, after = name.partition(value)
            if match:
                is_any = True
                braces = (before + "\0" + after).replace("{", "{{").replace("}", "}}")
                yield name, braces.replace("\0", f"{{{field}}}")
        if is_any:
            return
