"""Which model a table asks for: its columns, and whether the label has classes or is a number."""

from fluffle.errors import LayoutError, TaskError
from fluffle.logs import get_logger
from fluffle.survey.columns import MAX_COLUMNS
from fluffle.survey.shape import MAX_COLUMN_NAME
from fluffle.table_model import TableModel, named
from fluffle_worker.tabular.labels import LabelSurvey
from fluffle_worker.tabular.reading import Kinds, columns_of, require_label, require_numbers, survey_labels
from fluffle_worker.tabular.settings import TabularSettings

log = get_logger(__name__)


def look_at(
    data: str | None, label: str | None, settings: TabularSettings, *, begins: bool, surveyed: bool
) -> TableModel:
    """Return the model that the settings ask for, and where they leave it open, the rows.

    Of the rows, the types of the columns and the labels are read. Raises TaskError, which says what to set,
    where neither says it. A column that holds no numbers is an error where a federation begins with this
    model. At a site that is only looked at it is left out, as it would be in a federation without it.
    """
    kinds: Kinds = columns_of(data) if data else {}
    if not begins and (others := [name for name, other in kinds.items() if other and name != label]):
        log.info("columns are left out, since they hold no numbers", columns=named(others))
        kinds = {name: other for name, other in kinds.items() if name not in others}
    if label is None:
        known = f": the columns are {named(list(kinds))}" if kinds else ""
        raise TaskError(f"nothing says which column the model tells: give --label COLUMN{known}")
    if kinds and label not in kinds:
        raise TaskError(f"{data} has no column {label!r}: its columns are {named(list(kinds))}")
    if kinds and data:
        require_label(kinds, label, data)
    columns = _columns(kinds, label, settings, data)
    classes, (center, scale) = settings.classes, (settings.center, settings.scale)
    if classes is None and None in (center, scale):
        found = _labels(data, kinds, label)
        if settings.says_number or not (settings.target == "classes" or found.are_classes):
            _require_numbers(found)
            center = found.mean if center is None else center
            scale = found.deviation if scale is None else scale
        else:
            classes = found.classes()
    if "" in columns:
        raise TaskError(
            f"a column of {data} has no name, as where pandas writes its index to a CSV file: write it with "
            'index=False, or leave it out with leave_out = [""] in [tabular]'
        )
    _require_names([*columns, label, *(classes or ())])
    numbers = (settings.dropout, 0.0 if center is None else center, 1.0 if scale is None else scale)
    try:
        return TableModel(columns, label, classes, settings.hidden, surveyed, *map(float, numbers))
    except LayoutError as error:
        raise TaskError(str(error)) from error


def _columns(kinds: Kinds, label: str, settings: TabularSettings, data: str | None) -> tuple[str, ...]:
    """Return the columns that the model takes; those of the data must hold numbers."""
    if settings.columns is None and not kinds:
        raise TaskError(
            "nothing says which columns the model takes: give --data with rows of such a table, or columns "
            "in the table [tabular] of the TOML file"
        )
    if settings.columns is None:
        chosen = tuple(name for name in kinds if name != label and name not in settings.leave_out)
    else:
        chosen = settings.columns
    if kinds and (missing := [name for name in (*chosen, *settings.leave_out) if name not in kinds]):
        raise TaskError(
            f"[tabular] names {named(missing)}, and {data} has no such column: its columns are "
            f"{named(list(kinds))}"
        )
    if label in chosen:
        raise TaskError(
            f"columns in [tabular] names the label {label!r}: the model cannot take what it tells"
        )
    if kinds and data:
        require_numbers(kinds, chosen, data, "name it in leave_out in [tabular]")
    if not 1 <= len(chosen) <= MAX_COLUMNS:
        raise TaskError(
            f"the model would take {len(chosen):,} columns, and 1 to {MAX_COLUMNS:,} are possible: name "
            "those that matter as columns in [tabular]"
        )
    return chosen


def _labels(data: str | None, kinds: Kinds, label: str) -> LabelSurvey:
    if data is None:
        raise TaskError(
            f"nothing says what the label {label!r} is: give --data with rows that have it, or in [tabular] "
            'its classes, or target = "number" with center and scale'
        )
    found = survey_labels(data, kinds, label)
    if not found.count:
        raise TaskError(f"{data} has no row with a label {label!r}")
    return found


def _require_numbers(found: LabelSurvey) -> None:
    if found.is_text:
        raise TaskError(
            f"the label {found.label!r} holds text such as {min(found.names)!r}, and [tabular] says that it "
            "is a number: correct one of the two"
        )


def _require_names(names: list[str]) -> None:
    """Raise TaskError for a name that cannot be sent."""
    for name in names:
        if not name or len(name) > MAX_COLUMN_NAME or not name.isprintable():
            raise TaskError(
                f"the name {name[:40]!r} of a column or class cannot be used: it must have 1 to "
                f"{MAX_COLUMN_NAME} printable characters"
            )
